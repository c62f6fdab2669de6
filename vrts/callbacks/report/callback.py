"""Writing ``report.html`` at the end of a prediction run, and its thumbnails during it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from vrts.callbacks.prediction.writer import PredictionWriter
from vrts.callbacks.report.entries import by_priority, completion_limit, report_entry, summary
from vrts.callbacks.report.page import render_report, report_title
from vrts.callbacks.trainer import callbacks_of, data_of
from vrts.data.datamodule import VideoQADataModule
from vrts.files.predictions import METRICS_NAME, SETTINGS_NAME, read_predictions
from vrts.files.writing import make_folder, replacing
from vrts.types import Clip, InputError, Prediction

MOST_CHARACTERS, TEXT_BUDGET = 2000, 20_000_000
"""Of a completion, and of all together; a browser opens such a page in a second or two."""

MOST_FRAMES = 8
"""Frames shown of a clip."""
FRAME_WIDTH, FRAME_HEIGHT, GAP = 172, 96, 2
"""Box that a frame fits into, and space between two frames, in pixels."""

_log = logging.getLogger(__name__)


class ReportWriter(Callback):
    """Writes ``report.html`` next to ``predictions.jsonl``: one file that opens in a browser.

    It has the result, charts, and the questions with frames, votes and reasoning; the middle of a
    long completion is left out. Thumbnails of frames are kept in ``thumbnails/`` as soon as their
    questions are decided, so that the report of a resumed run has them too. An interrupted run
    writes no report.

    `trainer.callbacks` must name it after `PredictionWriter`, whose files it reads.

    Args:
        max_thumbnails: questions whose frames the report shows, wrong and failed ones first, then
            undecided ones; 0 keeps no frames at all.
    """

    def __init__(self, max_thumbnails: NonNegativeInt = 300) -> None:
        self.max_thumbnails = int(max_thumbnails)
        self._writer = PredictionWriter()
        """That of the run from `setup` on."""
        self._keeps_thumbnails = False

    @property
    def path(self) -> Path:
        """Return where the report goes."""
        return self._writer.folder.path / "report.html"

    @property
    def _thumbnails(self) -> Path:
        return self._writer.folder.path / "thumbnails"

    def results(self, trainer: Trainer) -> list[Path]:
        """See `HasResults`."""
        return [self.path]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the writer, which must come before this callback; raises `InputError`."""
        if stage != "predict":
            return
        order = callbacks_of(trainer, Callback)
        writers = [c for c in order[: order.index(self)] if isinstance(c, PredictionWriter)]
        if not writers:
            raise InputError(
                "trainer.callbacks: ReportWriter reads what PredictionWriter writes; put a "
                "PredictionWriter before it"
            )
        self._writer = writers[0]
        self._keeps_thumbnails = self.max_thumbnails > 0
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder, and the report goes there; remove it")
        if self._keeps_thumbnails and trainer.is_global_zero:
            make_folder(self._thumbnails, "ReportWriter")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the report of an earlier run with fewer questions: it would pass for this."""
        if trainer.is_global_zero and self._writer.is_unfinished:
            self.path.unlink(missing_ok=True)

    def on_predictions(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Prediction]
    ) -> None:
        """Keep the frames; the predictions themselves are written already."""
        for prediction in predictions:
            clip = prediction.clip
            # a replayed run's clips have no pixels
            if not self._keeps_thumbnails or clip is None or clip.frames.numel() == 0:
                continue
            try:
                write_thumbnails(
                    self._thumbnails, prediction.question.id, clip, trainer.global_rank
                )
            except OSError as error:
                self._keeps_thumbnails = False
                _log.warning(
                    "%s: cannot keep frames (%s); the report lacks frames of later questions",
                    self._thumbnails,
                    error,
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the report from the first rank; raises `InputError` if it cannot be written."""
        if stage != "predict" or not trainer.is_global_zero:
            return
        # what is not a character (half a surrogate pair in an annotation) becomes "?"
        options: Any = {"encoding": "utf-8", "errors": "replace", "newline": ""}
        try:
            with replacing(self.path, "w", **options) as file:
                file.writelines(self._render(data_of(trainer)))
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write the report ({error}); predictions.jsonl and "
                "metrics.json are complete, and the same command writes the report once it can"
            ) from error

    def _render(self, data: VideoQADataModule) -> Iterator[str]:
        folder, lines = self._writer.folder.path, self._writer.folder.predictions_path
        limit = completion_limit(read_predictions(lines), MOST_CHARACTERS, TEXT_BUDGET)
        # the file is read three times: texts of a long run take more memory than all else
        summaries = [summary(report_entry(found, 0)) for found in read_predictions(lines)]
        ids = [entry["id"] for entry in by_priority(summaries)]
        kept = [(id, p) for id in ids if (p := thumbnails_path(self._thumbnails, id)).is_file()]
        thumbnails = {id: path.read_bytes() for id, path in kept[: self.max_thumbnails]}
        frames_note = ""
        if data.make_sample is not None:
            frames_note = (
                "No frames are shown: this run scored recorded completions and decoded no video. "
                "The report of the recorded run shows them."
            )
        elif len(thumbnails) < len(summaries):
            frames_note = (
                f"Frames are shown of {len(thumbnails):,} of {len(summaries):,} questions: where "
                f"there are any, and of {self.max_thumbnails:,} at most "
                "(ReportWriter.max_thumbnails), those of wrong answers first."
            )
        metrics = json.loads((folder / METRICS_NAME).read_text(encoding="utf-8"))
        path = folder / SETTINGS_NAME  # written when the run began
        settings = json.loads(path.read_text(encoding="utf-8"))
        date = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d}"
        return render_report(
            summaries,
            (report_entry(found, limit) for found in read_predictions(lines)),
            metrics,
            thumbnails,
            settings,
            report_title(settings, date),
            str(folder.resolve()),
            frames_note,
        )


def shown_frames(num_frames: int) -> list[int]:
    """Return the frames shown of T: evenly spread, first and last among them."""
    count = min(MOST_FRAMES, num_frames)
    return [int(i) for i in torch.linspace(0, num_frames - 1, count, device="cpu").round()]


def make_thumbnails(clip: Clip) -> bytes:
    """Draw a clip's frames side by side, small, as one JPEG."""
    shown = clip.frames[shown_frames(clip.num_frames)].permute(0, 2, 3, 1)  # [frames, H, W, C]
    H, W = shown.shape[1:3]
    scale = min(FRAME_WIDTH / W, FRAME_HEIGHT / H)
    width, height = max(1, round(W * scale)), max(1, round(H * scale))
    image = Image.new("RGB", (len(shown) * (width + GAP) - GAP, height), "white")
    for place, pixels in enumerate(shown.contiguous().cpu().numpy()):
        frame = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        image.paste(frame, (place * (width + GAP), 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def thumbnails_path(folder: Path, question_id: str) -> Path:
    """Return the file of a question's thumbnails, whatever characters its id has."""
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{digest[:20]}.jpg"


def write_thumbnails(folder: Path, question_id: str, clip: Clip, rank: int) -> None:
    """Write a question's thumbnails atomically; several ranks may write the same file at a time."""
    folder.mkdir(exist_ok=True)
    with replacing(thumbnails_path(folder, question_id), writer=f".rank{rank}") as file:
        file.write(make_thumbnails(clip))
