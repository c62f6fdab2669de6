"""Loading a video language model from a local folder or a hub id."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    utils,
)
from transformers import __version__ as version

from vrts.files.fingerprints import folder_digests
from vrts.models.attention.shared_prefix import SHARED_PREFIX
from vrts.models.attention.windows import BATCHED_WINDOWS
from vrts.models.families.known import FAMILIES, find_family
from vrts.models.quantizing import Quantize, keep_packing, quantization_options
from vrts.models.vlm.shards import PATH_KEY, build_empty, check_shapes, local_folder
from vrts.models.vlm.untrusted import (
    adapter_patterns,
    check_index,
    check_patterns,
    check_template,
    refuse_kernels,
)
from vrts.types import InputError

if TYPE_CHECKING:
    from peft import PeftModel

LANGUAGE_MODEL_LINEAR = (
    r".*(language|text)_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    r"|in_proj_qkv|in_proj_z|in_proj_b|in_proj_a|out_proj)"
)
"""Regular expression of LoRA targets; without its prefix it would match the vision MLP too."""

ADAPTER_CONFIG = "adapter_config.json"
"""Marks a folder with a LoRA adapter, not a full model."""

PATCH_SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Of an image or video processor, and what the vision tower's configuration calls them."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_REASON = 300
"""Characters of a library's own message."""

REMOTE_CODE = (
    f"{PATH_KEY}: {{where}} asks for Python code that comes with the model (auto_map), which "
    "vrts never runs; where transformers' own classes fit, remove that entry from a local copy"
)

OLDEST_TRANSFORMERS = "5.17"
"""That knows all families; as in ``pyproject.toml``."""

HUB_FILES = ("config.json", ADAPTER_CONFIG)
HUB_TIMEOUT_S = 4

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation of the language model (Hu et al., 2021, arXiv 2106.09685)."""

    rank: int = 16
    """Rank of the update of each matrix."""
    alpha: int = 32
    """The update is scaled by ``alpha / rank``."""
    dropout: float = 0.0
    """Dropout before the update; anything above 0 makes sampling and scoring differ."""
    target_modules: str = LANGUAGE_MODEL_LINEAR
    """Regular expression of the module names to adapt."""


def find_model(name_or_path: str) -> None:
    """Check what can be checked about a model without loading it.

    Raises:
        InputError: a local folder lacks its configuration or its weights, or asks for code of its
            own.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        if name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
            raise InputError(
                f"{PATH_KEY}: no folder {name_or_path!r}; give a folder in Hugging Face's "
                "format, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
        check_hub(name_or_path)
        return
    for path in sorted(folder.glob("*config.json")):
        _refuse_code(path)
    if (folder / ADAPTER_CONFIG).is_file():
        return
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{PATH_KEY}: {folder} has no config.json; give a folder that save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{PATH_KEY}: {folder} has no weights (*.safetensors); download them, or "
            "convert other formats to safetensors first (pickled weights are not loaded)"
        )
    check_index(folder)


def check_hub(hub_id: str) -> None:
    """See within seconds that a hub id can be loaded; transformers would retry for minutes.

    Raises:
        InputError: it is not in the cache, and the hub does not know it or cannot be reached.
    """
    if any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in HUB_FILES):
        return
    remedy = f"no folder {hub_id!r} in {Path.cwd()} either; give a folder that is there"
    if HF_HUB_OFFLINE:
        raise InputError(
            f"{PATH_KEY}: {hub_id} is not in the hub's cache, and HF_HUB_OFFLINE is set; {remedy}"
        )
    answers: list[str | None] = []
    asking = threading.Thread(target=lambda: answers.append(_ask_hub(hub_id)), daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT_S)  # resolving a name has no timeout of its own
    problem = answers[0] if answers else f"the hub did not answer within {HUB_TIMEOUT_S} s"
    if problem is not None:
        raise InputError(f"{PATH_KEY}: {hub_id}: {problem}; {remedy}")


def _ask_hub(hub_id: str) -> str | None:
    """What is wrong with a hub id, None where nothing is."""
    try:
        HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
    except GatedRepoError:
        return None  # transformers says how to get access
    except (RepositoryNotFoundError, HFValidationError):
        return "the hub has no such model"
    except Exception as error:  # noqa: BLE001 whatever the network answers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"not in the hub's cache, and the hub is out of reach ({reason})"
    return None


def _refuse_code(path: Path) -> None:
    """Refuse a configuration that asks for Python code which comes with the model.

    Raises:
        InputError: it does.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # whatever reads the file later reports the problem
    if isinstance(config, dict) and config.get("auto_map"):
        raise InputError(REMOTE_CODE.format(where=path))
    if isinstance(config, dict):
        refuse_kernels(path, config)


def load_processor(name_or_path: str) -> Any:
    """Load tokenizer, chat template and video processor.

    Raises:
        InputError: they are missing or belong to another model.
    """
    find_model(name_or_path)
    try:
        processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, ImportError, HFValidationError) as error:
        raise InputError(f"{PATH_KEY}: no processor in {name_or_path}: {error}") from error
    if not hasattr(processor, "video_processor") or not processor.chat_template:
        raise InputError(
            f"{PATH_KEY}: {name_or_path} has no video processor or no chat template; "
            "it must hold all of the model's processor files"
        )
    # transformers makes an empty tokenizer where its files are missing
    if processor.image_token not in processor.tokenizer.get_vocab():
        raise InputError(
            f"{PATH_KEY}: the tokenizer in {name_or_path} does not know "
            f"{processor.image_token}; its files are missing or of another model"
        )
    check_template(processor, name_or_path)
    return processor


def check_processor(processor: Any, config: Any, name: str) -> None:
    """Refuse a processor that belongs to another model.

    Args:
        processor: of transformers.
        config: of the model.
        name: folder or hub id of the processor.

    Raises:
        InputError: it is of another family, or makes other tokens or patches than the model takes.
    """
    family, kind = find_family(config.model_type, f"{PATH_KEY}: {name}"), type(processor).__name__
    others = [f.title for f in FAMILIES if kind in f.processors]
    token = processor.image_token
    is_same = processor.tokenizer.convert_tokens_to_ids(token) == config.image_token_id
    if (others and kind not in family.processors) or not is_same:
        what = kind if is_same else f"a tokenizer where {token} is not id {config.image_token_id}"
        raise InputError(
            f"{PATH_KEY}: {name} has {what}, which does not fit the {family.title} in its "
            f"config.json or under its adapter; take the model's own processor files, or name the "
            f"adapter's own base in {ADAPTER_CONFIG}"
        )
    for part in (processor.image_processor, processor.video_processor):
        for key, own in PATCH_SIZES.items():
            made, read = getattr(part, key, None), getattr(config.vision_config, own, None)
            if made and read and made != read:
                raise InputError(
                    f"{PATH_KEY}: the {type(part).__name__} in {name} has {key} {made}, but the "
                    f"model's vision_config has {own} {read}; take the model's own processor files"
                )


def check_attention(name: str | None) -> None:
    """Check that the vision tower's attention is known and installed.

    transformers would name neither the option nor its default, and fetch a kernel, which is code,
    from the hub in the place of a package that is missing.

    Args:
        name: of transformers; None is vrts's own.

    Raises:
        InputError: it is not.
    """
    known = ["eager", *(k for k in AttentionInterface().valid_keys() if "|" not in k)]
    if name is None:
        return
    # such as is_flash_attn_2_available for flash_attention_2
    is_installed = getattr(
        utils, f"{name.replace('flash_attention', 'is_flash_attn')}_available", lambda: True
    )
    if name not in known:
        problem = f"{name!r}, which is none of {', '.join(known)}"
    elif not is_installed():
        problem = f"{name!r}, which lacks its package (pip install flash-attn) or a GPU"
    else:
        return
    raise InputError(
        f"model.policy.init_args.attn_implementation is {problem}; null takes torch's SDPA kernels"
    )


def load_model(
    name_or_path: str,
    dtype: Dtype,
    attn_implementation: str | None,
    quantize: Quantize | None = None,
) -> nn.Module:
    """Load a model whose language part runs shared-prefix attention.

    Args:
        name_or_path: local folder or hub id.
        dtype: of the weights; ``auto`` keeps the stored one.
        attn_implementation: transformers' name of the vision tower's attention, see
            `check_attention`; None takes vrts's batched windows.
        quantize: how the decoder's matrices are held; None leaves them as they are.

    Raises:
        InputError: files are missing, unreadable, incomplete or of another architecture.
    """
    config = read_config(name_or_path)
    if Path(name_or_path).is_dir():
        check_shapes(Path(name_or_path))
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation={
                "text_config": SHARED_PREFIX,
                "vision_config": attn_implementation or "sdpa",
            },
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_quantization(config, dtype) if quantize else {},
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{PATH_KEY}: cannot load {name_or_path}: {error}") from error
    model, info = loaded
    _check_complete(name_or_path, info)
    if quantize:
        keep_packing(model)
    if attn_implementation is None:
        _batch_windows(model)
    assert isinstance(model, nn.Module)
    return model


def read_config(name_or_path: str) -> Any:
    """The configuration of a model that is known.

    Raises:
        InputError: it is not there, or is of another architecture.
    """
    find_model(name_or_path)
    _check_known(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{PATH_KEY}: cannot load {name_or_path}: {error}") from error
    check_type(config, name_or_path)
    return config


def _check_known(name_or_path: str) -> None:
    """Refuse a local folder's model type before transformers, which may not know it, reads it.

    Raises:
        InputError: vrts does not know it, or the installed transformers does not.
    """
    path = Path(name_or_path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # transformers says what is wrong
    family = find_family(model_type, f"{PATH_KEY}: {name_or_path}")
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{PATH_KEY}: {name_or_path} is {family.title}, which transformers {version} does not "
            f"know; pip install 'transformers>={OLDEST_TRANSFORMERS}'"
        )


def _quantization(config: Any, dtype: Dtype) -> dict[str, Any]:
    """Options of loading in 4 bits; matrices are unpacked to the dtype of the other weights."""
    known = config.dtype if dtype == "auto" else getattr(torch, dtype)
    return quantization_options(known or torch.float32)


def load_empty_model(name_or_path: str, dtype: Dtype, attn_implementation: str | None) -> nn.Module:
    """Like `load_model`, with parameters on the meta device, to be sharded and then filled.

    Raises:
        InputError: files are missing, or the model is of another architecture.
    """
    find_model(name_or_path)
    folder = local_folder(name_or_path)
    read_config(str(folder))
    try:
        model = build_empty(folder, dtype, attn_implementation or "sdpa")
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{PATH_KEY}: cannot load {name_or_path}: {error}") from error
    if attn_implementation is None:
        _batch_windows(model)
    assert isinstance(model, nn.Module)
    return model


def _batch_windows(model: Any) -> None:
    """Let the vision tower attend to windows of one size together.

    Set after loading, where transformers would look for a flash attention package.
    """
    if find_family(model.config.model_type, PATH_KEY).batches_windows:
        model.model.visual.config._attn_implementation = BATCHED_WINDOWS


def check_type(config: Any, name: str) -> None:
    """Refuse a model of another architecture, or with code of its own.

    Raises:
        InputError: it is one.
    """
    if getattr(config, "auto_map", None):
        raise InputError(REMOTE_CODE.format(where=f"the configuration of {name}"))
    find_family(config.model_type, f"{PATH_KEY}: {name}")
    if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or []):
        raise InputError(
            f"{PATH_KEY}: {name} has layers with a sliding window, which vrts does not compute; "
            "set use_sliding_window: false in its config.json if the weights were trained so"
        )


def weights_stamp(name_or_path: str) -> dict[str, str]:
    """Digests of a local folder's weights by file name; empty for a hub id.

    Of large files parts are read (see `sampled_digest`): training changes weights everywhere.
    """
    return folder_digests(Path(name_or_path), "*.safetensors")


def adapter_base(name_or_path: str) -> str | None:
    """Name of the model that an adapter folder adapts; None where the folder is not an adapter.

    Raises:
        InputError: the adapter's configuration is damaged or does not name its base model.
    """
    path = Path(name_or_path) / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{PATH_KEY}: {path} is not JSON: {error}") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise InputError(
            f"{PATH_KEY}: {path} names no base_model_name_or_path; add it, or give the "
            "folder of a merged model"
        )
    return str(base)


def load_adapter(model: Any, folder: str, lora: Lora | None) -> PeftModel:
    """Put an adapter from a folder on its base model.

    Args:
        model: the base model.
        folder: holds the adapter's configuration and weights.
        lora: given where training continues with the adapter; rank and alpha must be its own.

    Raises:
        InputError: the weights are missing, damaged or do not fit the base model, or `lora` asks
            for another adapter.
    """
    from peft import PeftModel  # takes half a second, which runs without an adapter need not wait

    if not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{PATH_KEY}: {folder} has no {ADAPTER_WEIGHTS}")
    names = [name for name, _ in model.named_modules()]
    path = Path(folder) / ADAPTER_CONFIG
    patterns = adapter_patterns(json.loads(path.read_text(encoding="utf-8")))
    check_patterns(patterns, names, str(path))
    try:
        with warnings.catch_warnings():
            # peft only warns of tensors that would stay as they are drawn
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=lora is not None)
        config: Any = adapted.peft_config["default"]
        with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
            num_written = sum("lora_" in name for name in file.keys())  # noqa: SIM118 no mapping
        num_used = sum("lora_" in name for name, _ in adapted.named_parameters())
        if num_written != num_used:
            raise ValueError(f"it has {num_written} tensors, and {num_used} fit the model")
    except (OSError, ValueError, RuntimeError, SafetensorError, UserWarning) as error:
        # one line of the many in which torch and peft list each tensor
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(
            f"{PATH_KEY}: cannot load the adapter {folder}: {reason[:MAX_REASON]}; give whole "
            "files, and the model it was trained on as base_model_name_or_path of its "
            f"{ADAPTER_CONFIG}"
        ) from error
    if lora is not None and (lora.rank, lora.alpha) != (config.r, config.lora_alpha):
        raise InputError(
            f"model.policy.lora asks for rank {lora.rank} and alpha {lora.alpha}, but the adapter "
            f"in {folder} has rank {config.r} and alpha {config.lora_alpha}; give those, or merge "
            "the adapter first"
        )
    return adapted


def is_adapted(model: Any) -> bool:
    """Whether a model is wrapped with an adapter. Asking loads no peft: an adapted model has."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def _check_complete(name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights that would leave a part of the model at its random initialisation."""
    wrong = [*info["missing_keys"], *(k[0] for k in info.get("mismatched_keys", []))]
    if wrong:
        raise InputError(
            f"{PATH_KEY}: the weights in {name} lack {len(wrong)} tensors of the "
            f"architecture in its config.json, {sorted(wrong)[0]} first; the folder is incomplete"
        )


def add_lora(model: Any, lora: Lora) -> PeftModel:
    """Wrap the model with a fresh adapter; everything else is frozen.

    Raises:
        InputError: no module fits the expression.
    """
    from peft import LoraConfig, get_peft_model  # as in `load_adapter`

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    names = [name for name, _ in model.named_modules()]
    where = "model.policy.init_args.lora.target_modules"
    check_patterns(adapter_patterns({"target_modules": lora.target_modules}), names, where)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
