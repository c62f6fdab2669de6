"""A file that a callback writes while a run trains."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from vrts.files.writing import check_file, make_folder


class RunFile(Callback):
    """A callback that writes one file of a training run, from the first rank.

    Args:
        output_dir: folder to write to; ``trainer.default_root_dir`` where null.
    """

    file_name: str

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir

    def path(self, trainer: Trainer) -> Path:
        """Return where the file goes."""
        return Path(self.output_dir or trainer.default_root_dir) / self.file_name

    def results(self, trainer: Trainer) -> list[Path]:
        """Return the file."""
        return [self.path(trainer)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder; raises `InputError` if it or the file cannot be written."""
        if stage == "fit" and trainer.is_global_zero:
            option = f"{type(self).__name__}.output_dir"
            make_folder(self.path(trainer).parent, option)
            check_file(self.path(trainer), option)
