"""The LightningDataModule: from annotation files to streams of samples for every stage."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from vrts.data.order import evaluation_batches
from vrts.data.progress import Layout, TrainingProgress
from vrts.data.readers.base import Reader, checked
from vrts.data.readers.fields import check_frame_rates
from vrts.data.readers.recorded import RecordedReader
from vrts.data.readers.single import SingleQuestionReader
from vrts.data.stream import (
    Batch,
    MadeSamples,
    MakeSample,
    SampleSource,
    SampleStream,
    TrainingStream,
)
from vrts.data.video.cache import CachingDecoder, FrameCache
from vrts.data.video.decoder import Decoder
from vrts.data.video.frames import FrameSampler, UniformSampler
from vrts.data.video.pyav import PyAVDecoder
from vrts.data.video.resolution import QWEN2_5_VL, Resolution
from vrts.data.workers.pool import DecodePool
from vrts.data.workers.requests import Priority
from vrts.files.fingerprints import describe
from vrts.types import InputError, Question, Sample

READERS = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
"""Readers that each stage uses; ``val`` may be missing in ``fit``."""


class VideoQADataModule(LightningDataModule):
    """Streams sampled, decoded and resized video questions, a share to each rank.

    A training batch is what a rank has of one optimizer step: all ranks together take the next
    ``batch_size`` times the number of ranks questions of the epoch, which is shuffled again each
    time. The last step of an epoch has what is left, so that every question comes once, in all
    stages. After an optimizer step the module calls `mark_trained`, which moves the position that
    checkpoints keep. A run that is resumed with Lightning's ``ckpt_path``, also with another
    number of ranks or batch size, continues with the questions of the epoch that are left.

    A video that fails to decode gives a `Sample` with an error and never stops a run.

    Args:
        train: Reader of the training questions.
        val: Reader of the validation questions.
        test: Reader of the test questions.
        predict: Reader of the questions to predict.
        sampler: Chooses frames; `UniformSampler` where it is null.
        decoder: Decodes videos; `PyAVDecoder` where it is null.
        resolution: Pixel budget of the frames.
        num_frames: Frames of a video.
        batch_size: Questions of an optimizer step, on each rank.
        eval_batch_size: Questions that come at a time in the other stages, on each rank; how many
            are asked together is up to the engine.
        num_workers: Processes that decode, on each rank; 0 decodes in the main process, where
            a video that hangs holds up everything.
        prefetch_batches: Batches decoded ahead.
        deadline_s: Seconds after which a video has failed.
        shuffle: Shuffle the training questions.
        seed: Seed of the shuffling.
        cache: Keeps decoded frames on disk; null decodes again in every run.
        frames_fps: Frames a second of folders of frames whose rows have no ``fps``.
        max_damaged: Share of a clip's frames that may be damaged: the nearest sound ones are used
            for them. A video with more of them has failed; with 0 any of them fails it.
        video: A video or image to ask one question about, in place of ``predict``.
        question: That question.
        options: Its options, for a multiple choice.

    Raises:
        InputError: one of ``video`` and ``question`` without the other, or beside ``predict``.
    """

    def __init__(
        self,
        train: Reader | None = None,
        val: Reader | None = None,
        test: Reader | None = None,
        predict: Reader | None = None,
        sampler: FrameSampler | None = None,
        decoder: Decoder | None = None,
        resolution: Resolution | None = None,
        num_frames: PositiveInt = 32,
        batch_size: PositiveInt = 1,
        eval_batch_size: PositiveInt = 1,
        num_workers: NonNegativeInt = 2,
        prefetch_batches: NonNegativeInt = 2,
        deadline_s: PositiveFloat = 60.0,
        shuffle: bool = True,
        seed: int = 0,
        cache: FrameCache | None = None,
        frames_fps: PositiveFloat | None = None,
        max_damaged: ClosedUnitInterval = 0.1,
        video: str | None = None,
        question: str | None = None,
        options: list[str] | None = None,
    ) -> None:
        super().__init__()
        if video is not None or question is not None or options is not None:
            if predict is not None or video is None or question is None:
                raise InputError(
                    "data.video and data.question ask one question (with data.options a multiple "
                    "choice), in place of data.predict; give both of them, and no reader"
                )
            predict = SingleQuestionReader(video, question, options)
        self.readers = {"train": train, "val": val, "test": test, "predict": predict}
        self.sampler = sampler or UniformSampler()
        self.decoder = decoder or PyAVDecoder()
        self.resolution = resolution or Resolution()
        # plain numbers: a restricted type in a checkpoint would need unpickling to be read
        self.num_frames = int(num_frames)
        self.batch_size = int(batch_size)
        self.eval_batch_size = int(eval_batch_size)
        self.num_workers = int(num_workers)
        self.prefetch_batches = int(prefetch_batches)
        self.deadline_s = float(deadline_s)
        self.shuffle = shuffle
        self.seed = seed
        self.cache = cache
        self.frames_fps = None if frames_fps is None else float(frames_fps)
        self.max_damaged = float(max_damaged)
        self.predict_num_frames: int | None = None
        """Frames of the streams of all stages but training, where they are not ``num_frames``."""
        self.make_sample: MakeSample | None = None
        """Makes samples in place of the decoder, where a model needs none of their frames; to be
        set before the first stream."""
        self._excluded: frozenset[str] = frozenset()
        self._questions: dict[str, list[Question]] = {}
        self._pool: SampleSource | None = None
        self._progress: TrainingProgress | None = None

    def setup(self, stage: str) -> None:
        """Read the annotation files of a stage.

        Raises:
            InputError: a reader that the stage needs is missing, a file is bad, or the cache's
                folder cannot be used.
        """
        if self.cache is not None:
            self.cache.prepare()
        module = None if self.trainer is None else self.trainer.lightning_module
        sizes = getattr(module, "frame_sizes", None)
        self.resolution = self.resolution.for_model(sizes or QWEN2_5_VL)
        for name in READERS[stage]:
            reader = self.readers[name]
            if reader is None and (stage, name) == ("fit", "val"):
                continue
            if reader is None:
                hint = ", or data.video and data.question" if stage == "predict" else ""
                raise InputError(
                    f"{TrainerFn(stage).value} needs data.{name}: give it a reader, as in configs/"
                    f"{hint}"
                )
            if name not in self._questions:
                self._questions[name] = checked(reader)
                if self.frames_fps is None and not isinstance(reader, RecordedReader):
                    check_frame_rates(self._questions[name], f"data.{name}")
        if stage == "fit":
            self._progress = TrainingProgress(self._layout(), self._rank()[0], self.trainer)

    def teardown(self, stage: str) -> None:
        """End the decode workers; a later stage starts new ones."""
        if self._progress is not None:
            self._progress.end()
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the decode workers of a run that failed or was interrupted."""
        self.close()

    def close(self) -> None:
        """End the decode workers, if there are any; using them again starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def questions(self, name: str) -> list[Question]:
        """Return all questions of ``train``, ``val``, ``test`` or ``predict``, of every rank.

        Excluded ones are among them.

        Raises:
            InputError: they were not read: no reader, or no `setup` of that stage.
        """
        if name not in self._questions:
            raise InputError(f"no questions of data.{name}: give it a reader and run its stage")
        return self._questions[name]

    def exclude(self, ids: Collection[str]) -> None:
        """Leave questions out of prediction streams that are made from now on."""
        self._excluded = frozenset(ids)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the clips of a prediction run depend on, as plain JSON values.

        The reader's options stand under ``reader.<option>``, so that a difference is told by name.
        Workers, deadlines and the cache change no clip and are left out, and so is all of decoding
        where samples are made without it.
        """
        reader = self.readers["predict"]
        found = {} if reader is None else reader.fingerprint()
        questions = {"reader" if key == "class" else f"reader.{key}": found[key] for key in found}
        if self.make_sample is not None:
            return questions
        return {
            **questions,
            "sampler": describe(self.sampler),
            "decoder": describe(self.decoder),
            "resolution": describe(self.resolution),
            "frames_fps": self.frames_fps,
            "max_damaged": self.max_damaged,
        }

    def submit(
        self, questions: Sequence[Question], num_frames: int, priority: Priority = Priority.NOW
    ) -> list[Future[Sample]]:
        """Begin to decode the videos of some questions in parallel, and do not wait for them.

        A clip that is asked for again more urgently than before moves up where it still waits. With
        ``num_workers: 0`` they are decoded before this returns.
        """
        pool = self._decode_pool()
        return [pool.submit(question, num_frames, priority) for question in questions]

    def load(self, questions: Sequence[Question], num_frames: int) -> list[Sample]:
        """Decode the videos of some questions in parallel, and return them in the same order."""
        return [future.result() for future in self.submit(questions, num_frames)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass through the training questions."""
        return self._layout().num_steps()

    def train_dataloader(self) -> TrainingStream:
        """Return the rank's training stream, which continues where training is.

        Raises:
            InputError: the training questions were not read.
        """
        questions = self.questions("train")
        assert self._progress is not None
        pool = self._decode_pool()
        return TrainingStream(
            self._progress, questions, pool, self.num_frames, self.prefetch_batches
        )

    def mark_trained(self, batch: Batch) -> None:
        """Move the position behind a batch, right after its optimizer step.

        Also where the step was skipped: what was tried does not come again in a resumed run.
        """
        if self._progress is not None and batch.end is not None:
            self._progress.position = batch.end

    def state_dict(self) -> dict[str, Any]:
        """Return where training is in its questions, and what their order depends on."""
        return {} if self._progress is None else self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the run that is resumed was; raises as `TrainingProgress` does."""
        if self._progress is not None:
            self._progress.load_state_dict(state_dict)

    def val_dataloader(self) -> SampleStream | list[SampleStream]:
        """Return the rank's validation stream, or none where ``data.val`` is not given."""
        if "val" not in self._questions:
            return []
        return self._evaluation_stream(self.questions("val"))

    def test_dataloader(self) -> SampleStream:
        """Return the rank's test stream."""
        return self._evaluation_stream(self.questions("test"))

    def predict_dataloader(self) -> SampleStream:
        """Return the rank's prediction stream, without the excluded questions."""
        questions = [q for q in self.questions("predict") if q.id not in self._excluded]
        return self._evaluation_stream(questions)

    def transfer_batch_to_device(
        self,
        batch: Any,
        device: torch.device,
        dataloader_idx: int,
    ) -> Any:
        """Leave the frames where they are: the policy moves what it needs."""
        return batch

    def _evaluation_stream(self, questions: list[Question]) -> SampleStream:
        num_frames = self.predict_num_frames or self.num_frames
        rank, world_size = self._rank()
        order = list(range(len(questions)))
        own = evaluation_batches(order, self.eval_batch_size, rank, world_size)
        if questions and not own:
            # a rank without a share takes part, with an empty batch, in what all do together
            own = [[]]
        pool = self._decode_pool()
        return SampleStream(questions, own, pool, num_frames, self.prefetch_batches)

    def _decode_pool(self) -> SampleSource:
        if self._pool is None and self.make_sample is not None:
            self._pool = MadeSamples(self.make_sample)
        elif self._pool is None:
            decoder = self.decoder
            if self.cache is not None:
                decoder = CachingDecoder(decoder, self.cache)
            self._pool = DecodePool(
                decoder,
                self.sampler,
                self.resolution,
                self.num_workers,
                self.deadline_s,
                self.frames_fps,
                self.max_damaged,
            )
        return self._pool

    def _layout(self) -> Layout:
        count = len(self.questions("train"))
        return Layout(count, self.seed, self.shuffle, self.batch_size, self._rank()[1])

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
