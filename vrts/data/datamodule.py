"""The LightningDataModule: from annotation files to streams of samples for every stage."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from vrts.data.progress import StepPlan, TrainingProgress
from vrts.data.readers.base import Reader, checked
from vrts.data.readers.fields import check_frame_rates
from vrts.data.readers.recorded import RecordedReader
from vrts.data.readers.single import SingleQuestionReader
from vrts.data.stream import (
    Batch,
    MakeSample,
    SampleFactory,
    SampleSource,
    SampleStream,
    TrainingStream,
    evaluation_batches,
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

READERS = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": ["predict"]}
"""Readers of each stage; ``val`` is optional in ``fit``."""


class VideoQADataModule(LightningDataModule):
    """Streams video questions with decoded and resized frames, divided among the ranks.

    A training batch is a rank's part of one optimizer step: all ranks together take the next
    ``batch_size * world_size`` questions of the epoch, which is shuffled each time. The last step
    of an epoch has the rest, so that every question comes once, in all stages. After an optimizer
    step the module calls `mark_trained`, which moves the position in checkpoints. A run resumed
    with Lightning's ``ckpt_path`` continues with the remaining questions of the epoch, also with
    another number of ranks or batch size.

    A video that cannot be decoded gives a `Sample` with an error and never stops a run.

    Args:
        train: Reader of the training questions.
        val: Reader of the validation questions.
        test: Reader of the test questions.
        predict: Reader of the questions to predict.
        sampler: Chooses frames; `UniformSampler` if null.
        decoder: Decodes videos; `PyAVDecoder` if null.
        resolution: Pixel budget of the frames.
        num_frames: Frames per video.
        batch_size: Questions per optimizer step and rank.
        eval_batch_size: Questions per batch and rank in the other stages; the engine decides how
            many are generated for together.
        num_workers: Decoding processes per rank; 0 decodes in the main process, where a video that
            hangs blocks everything.
        prefetch_batches: Batches decoded ahead.
        deadline_s: Seconds after which a video has failed.
        shuffle: Shuffle the training questions.
        seed: Seed of the shuffling.
        cache: Keeps decoded frames on disk; null decodes again in every run.
        frames_fps: Frames per second of folders of frames whose rows have no ``fps``.
        max_damaged: Fraction of a clip's frames that may be damaged and are replaced by the nearest
            intact ones. A video with more has failed.
        video: Video or image of a single question, instead of ``predict``.
        question: Text of the single question.
        options: Its options, if it is multiple choice.

    Raises:
        InputError: one of ``video`` and ``question`` without the other, or next to ``predict``.
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
                    "data.video and data.question are one question (with data.options multiple "
                    "choice), in place of data.predict; give both of them, and no reader"
                )
            predict = SingleQuestionReader(video, question, options)
        self.readers = {"train": train, "val": val, "test": test, "predict": predict}
        self.sampler = sampler or UniformSampler()
        self.decoder = decoder or PyAVDecoder()
        self.resolution = resolution or Resolution()
        # plain numbers: restricted types in a checkpoint would need unpickling
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
        self.predict_num_frames: int | None = None  # in all stages but training, if it differs
        # replaces the decoder if a model needs no frames; to be set before the first stream
        self.make_sample: MakeSample | None = None
        self._excluded: frozenset[str] = frozenset()
        self._questions: dict[str, list[Question]] = {}
        self._pool: SampleSource | None = None
        self._progress: TrainingProgress | None = None

    def setup(self, stage: str) -> None:
        """Read the annotation files of a stage.

        Raises:
            InputError: a reader is missing, a file is bad, or the cache's folder cannot be used.
        """
        if self.cache is not None:
            self.cache.prepare()
        module = None if self.trainer is None else self.trainer.lightning_module
        sizes = getattr(module, "frame_sizes", None) or QWEN2_5_VL
        self.resolution = self.resolution.for_model(sizes)
        self.sampler = self.sampler.for_model(sizes)
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
            self._progress = TrainingProgress(self._step_plan(), self._rank()[0], self.trainer)

    def teardown(self, stage: str) -> None:
        """End the decode workers; a later stage starts new ones."""
        if self._progress is not None:
            self._progress.end()
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the decode workers of a failed or interrupted run."""
        self.close()

    def close(self) -> None:
        """End the decode workers; new ones are started when needed."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def questions(self, name: str) -> list[Question]:
        """Return all questions of ``train``, ``val``, ``test`` or ``predict``, of every rank.

        Excluded ones are included.

        Raises:
            InputError: no reader, or no `setup` of that stage.
        """
        if name not in self._questions:
            raise InputError(f"no questions of data.{name}: give it a reader and run its stage")
        return self._questions[name]

    def exclude(self, ids: Collection[str]) -> None:
        """Leave questions out of later prediction streams."""
        self._excluded = frozenset(ids)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the clips of a prediction run depend on, as plain JSON values.

        The reader's options have keys ``reader.<option>``. Workers, deadlines and the cache change
        no clip and are left out, as is all of decoding if `make_sample` replaces it.
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
        """Start decoding videos in parallel; with ``num_workers: 0`` decode before returning.

        A waiting clip that is submitted again with a higher priority moves up.
        """
        pool = self._decode_pool()
        return [pool.submit(question, num_frames, priority) for question in questions]

    def load(self, questions: Sequence[Question], num_frames: int) -> list[Sample]:
        """Decode videos in parallel and return the samples in the order of the questions."""
        return [future.result() for future in self.submit(questions, num_frames)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass through the training questions."""
        return self._step_plan().num_steps()

    def train_dataloader(self) -> TrainingStream:
        """Return the rank's training stream, which continues at the position of training."""
        questions = self.questions("train")
        assert self._progress is not None
        pool = self._decode_pool()
        return TrainingStream(
            self._progress, questions, pool, self.num_frames, self.prefetch_batches
        )

    def mark_trained(self, batch: Batch) -> None:
        """Move the position to after a batch, right after its optimizer step.

        Also if the step was skipped: a resumed run does not repeat it.
        """
        if self._progress is not None and batch.end is not None:
            self._progress.position = batch.end

    def state_dict(self) -> dict[str, Any]:
        """Return the position of training, see `TrainingProgress`."""
        return {} if self._progress is None else self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, see `TrainingProgress`."""
        if self._progress is not None:
            self._progress.load_state_dict(state_dict)

    def val_dataloader(self) -> SampleStream | list[SampleStream]:
        """Return the rank's validation stream, or none without ``data.val``."""
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
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave the frames on the CPU: the policy moves what it needs."""
        return batch

    def _evaluation_stream(self, questions: list[Question]) -> SampleStream:
        num_frames = self.predict_num_frames or self.num_frames
        rank, world_size = self._rank()
        order = range(len(questions))
        own = evaluation_batches(order, self.eval_batch_size, rank, world_size)
        if questions and not own:
            # a rank without questions joins the collectives with an empty batch
            own = [[]]
        pool = self._decode_pool()
        return SampleStream(questions, own, pool, num_frames, self.prefetch_batches)

    def _decode_pool(self) -> SampleSource:
        if self._pool is None and self.make_sample is not None:
            self._pool = SampleFactory(self.make_sample)
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

    def _step_plan(self) -> StepPlan:
        count = len(self.questions("train"))
        return StepPlan(count, self.seed, self.shuffle, self.batch_size, self._rank()[1])

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
