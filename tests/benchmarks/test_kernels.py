import json

from benchmarks import common, kernels


def test_a_layer_takes_no_more_kernels_than_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    kernels.main()
    found = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    kept = json.loads((common.Path(common.__file__).parent / "results/kernels.json").read_text())
    assert found == kept["rows"], "run python -m benchmarks.kernels, and say in docs what changed"
    layers = {row["case"]: row["a layer"] for row in found}
    assert layers["LoRA on bfloat16, bf16-mixed"] <= 48
    assert layers["LoRA merged for sampling"] == layers["bfloat16"]
    assert layers["float32 weights, bf16-mixed"] == layers["bfloat16"], "weights are cast a step"
