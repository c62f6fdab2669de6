import os

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.plugins import FakeDecoder, ListReader
from vrts.data.datamodule import VideoQADataModule
from vrts.types import InputError, Sample


class Stop(Exception):
    pass


class Recorder(pl.LightningModule):
    """Keeps the ids of what each step gets; step number, batch and epoch with them."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.evaluated = []
        self.stop_after = stop_after

    def training_step(self, batch, batch_idx):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise Stop
        assert all(isinstance(sample, Sample) for sample in batch)
        self.seen.append((self.current_epoch, batch_idx, tuple(s.question.id for s in batch)))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated += [sample.question.id for sample in batch]

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def datamodule(**kwargs):
    defaults = {"train": ListReader(11), "decoder": FakeDecoder(), "num_workers": 0}
    return VideoQADataModule(**(defaults | {"num_frames": 2, "batch_size": 2} | kwargs))


def trainer(tmp_path, callbacks=(), **kwargs):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    options = defaults | quiet | {"default_root_dir": str(tmp_path)} | kwargs
    return pl.Trainer(callbacks=list(callbacks), **options)


def whole_run(tmp_path, data, **kwargs):
    module = Recorder()
    trainer(tmp_path, **kwargs).fit(module, datamodule=datamodule(**data))
    return module.seen


def test_an_epoch_has_every_question_once_but_the_tail_and_epochs_differ(tmp_path):
    seen = whole_run(tmp_path, {})
    assert [(epoch, index) for epoch, index, _ in seen] == [
        (epoch, index) for epoch in range(3) for index in range(5)
    ]
    epochs = [[id for e, _, ids in seen if e == epoch for id in ids] for epoch in range(3)]
    for ids in epochs:
        assert len(set(ids)) == len(ids) == 10
    assert epochs[0] != epochs[1] != epochs[2]
    assert whole_run(tmp_path, {}) == seen
    assert whole_run(tmp_path, {"seed": 1}) != seen


def test_each_batch_is_repeated_for_the_updates_of_a_rollout(tmp_path):
    once = whole_run(tmp_path, {})
    twice = whole_run(tmp_path, {"updates_per_rollout": 2})
    assert [ids for _, _, ids in twice] == [ids for _, _, ids in once for _ in range(2)]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("every_n_steps", [1, 2])
@pytest.mark.parametrize("stop_after", [3, 8])
def test_a_resumed_run_sees_exactly_what_is_left(
    tmp_path, updates, accumulate, every_n_steps, stop_after
):
    """Interrupted by an exception, resumed from the last checkpoint that was written in time."""
    data = {"updates_per_rollout": updates}
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
    whole = whole_run(tmp_path, data, **options)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=every_n_steps, save_top_k=-1)
    first = Recorder(stop_after)
    with pytest.raises(Stop):
        trainer(tmp_path, [keep], **options).fit(first, datamodule=datamodule(**data))
    assert first.seen == whole[:stop_after]
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=os.path.getmtime)
    if not checkpoints:
        assert stop_after < accumulate * every_n_steps
        return
    second = Recorder()
    trainer(tmp_path, **options).fit(
        second, datamodule=datamodule(**data), ckpt_path=str(checkpoints[-1])
    )
    done = len(whole) - len(second.seen)
    assert second.seen == whole[done:]
    # the checkpoint is after a step, and no more than every_n_steps before the interruption
    assert done <= stop_after < done + 2 * accumulate * every_n_steps


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_stopping_at_max_steps_and_going_on_gives_the_same_run(tmp_path, steps):
    whole = whole_run(tmp_path, {}, max_epochs=3)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    first = Recorder()
    trainer(tmp_path, [keep], max_epochs=-1, max_steps=steps).fit(first, datamodule=datamodule())
    second = Recorder()
    trainer(tmp_path).fit(second, datamodule=datamodule(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole


def test_resuming_after_whole_epochs_and_with_validation_in_the_middle(tmp_path):
    data = {"val": ListReader(3, "v"), "eval_batch_size": 2}
    options = {"val_check_interval": 2}
    whole = whole_run(tmp_path, data, **options)
    for where in ({"every_n_epochs": 1}, {"every_n_train_steps": 3}):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}-{step}", save_top_k=-1, **where)
        trainer(tmp_path, [keep], **options).fit(Recorder(), datamodule=datamodule(**data))
        paths = list(tmp_path.glob("*.ckpt"))
        assert len(paths) >= 3
        for path in paths:
            module = Recorder()
            trainer(tmp_path, **options).fit(
                module, datamodule=datamodule(**data), ckpt_path=str(path)
            )
            step = torch.load(path, weights_only=False)["global_step"]
            assert module.seen == whole[step:], path.name
            path.unlink()


def test_a_resume_with_other_data_warns(tmp_path):
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer(tmp_path, [keep], max_epochs=-1, max_steps=2).fit(Recorder(), datamodule=datamodule())
    with pytest.warns(UserWarning, match="num_questions 11 -> 9, seed 0 -> 4"):
        trainer(tmp_path).fit(
            Recorder(),
            datamodule=datamodule(train=ListReader(9), seed=4),
            ckpt_path=str(tmp_path / "last.ckpt"),
        )


def interrupted(tmp_path, stop_after, **options):
    """Train with batches of 2 until an exception; the checkpoint is after each step."""
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    first = Recorder(stop_after)
    with pytest.raises(Stop):
        trainer(tmp_path, [keep], **options).fit(first, datamodule=datamodule(**WIDE))
    return first.seen, tmp_path / "last.ckpt"


WIDE = {"train": ListReader(13), "batch_size": 2}


@pytest.mark.parametrize("max_steps", [-1, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stop_after", [1, 4, 5, 6, 7])
def test_a_run_goes_on_with_another_batch_size(tmp_path, stop_after, batch_size, max_steps):
    options = {"max_epochs": 3, "max_steps": max_steps}
    seen, path = interrupted(tmp_path, stop_after, **options)
    seen = seen[: torch.load(path, weights_only=False)["global_step"]]
    second = Recorder()
    runner = trainer(tmp_path, **options)
    data = datamodule(**WIDE | {"batch_size": batch_size})
    runner.fit(second, datamodule=data, ckpt_path=str(path))
    assert runner.current_epoch == 3
    assert runner.global_step == len(seen) + len(second.seen)
    whole = whole_run(tmp_path, WIDE)
    for epoch in range(3):
        ids = [id for e, _, ids in seen + second.seen if e == epoch for id in ids]
        order = [id for e, _, ids in whole if e == epoch for id in ids]
        assert ids[:12] == order[: len(ids)]
        assert len(set(ids)) == len(ids) > 13 - max(batch_size, 2)
    for epoch in {e for e, _, _ in second.seen}:
        indices = [index for e, index, _ in second.seen if e == epoch]
        assert indices == list(range(indices[0], 13 // batch_size))


def test_steps_stay_whole_where_gradients_are_accumulated(tmp_path):
    """4 questions a step before and after: 2 batches of 2, then 4 of 1."""
    _, path = interrupted(tmp_path, 4, accumulate_grad_batches=2)
    second = Recorder()
    steps = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, *_args):
            steps.append(trainer.global_step)

    options = {"accumulate_grad_batches": 4, "max_epochs": 1}
    data = datamodule(**WIDE | {"batch_size": 1})
    trainer(tmp_path, [Count()], **options).fit(second, datamodule=data, ckpt_path=str(path))
    assert len(second.seen) == 5
    assert steps == [2, 2, 2, 3, 4]


def test_the_questions_left_out_are_counted(tmp_path, caplog):
    _, path = interrupted(tmp_path, 3)
    with caplog.at_level("INFO"):
        trainer(tmp_path, max_epochs=1).fit(
            Recorder(), datamodule=datamodule(**WIDE | {"batch_size": 5}), ckpt_path=str(path)
        )
    assert (
        "batch_size 2 -> 5: 6 of 13 questions of epoch 0 are done, and the last 2 (q" in caplog.text
    )


def test_another_batch_size_under_a_limit_of_batches_is_refused(tmp_path):
    _, path = interrupted(tmp_path, 3, limit_train_batches=4)
    data = datamodule(**WIDE | {"batch_size": 1})
    runner = trainer(tmp_path, limit_train_batches=4)
    with pytest.raises(InputError, match=r"batch_size 2 -> 1, and trainer\.limit_train_batches"):
        runner.fit(Recorder(), datamodule=data, ckpt_path=str(path))


@pytest.mark.parametrize("end_of_epoch", [False, True])
def test_more_steps_of_the_only_epoch_are_trained(tmp_path, end_of_epoch):
    """Lightning takes an epoch that max_steps cut short for a whole one, and would stop there."""
    whole = whole_run(tmp_path, WIDE, max_epochs=1)
    where = {"every_n_epochs": 1} if end_of_epoch else {"every_n_train_steps": 1}
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, **where)
    first = Recorder()
    trainer(tmp_path, [keep], max_epochs=1, max_steps=2).fit(first, datamodule=datamodule(**WIDE))
    for steps in (4, -1):
        second = Recorder()
        trainer(tmp_path, max_epochs=1, max_steps=steps).fit(
            second, datamodule=datamodule(**WIDE), ckpt_path=str(tmp_path / "last.ckpt")
        )
        assert first.seen + second.seen == whole[: steps if steps > 0 else None]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_batches_pass_through_reduced_precision_untouched(tmp_path, precision):
    """Lightning's conversion of inputs fails on a list of frozen dataclasses."""
    module = Recorder()
    trainer(tmp_path, max_steps=1, precision=precision).fit(module, datamodule=datamodule())
    assert len(module.seen) == 1


def test_validate_test_and_predict_see_every_question_once(tmp_path):
    for run in ("validate", "test", "predict"):
        name = "val" if run == "validate" else run
        data = datamodule(**{name: ListReader(5)}, eval_batch_size=2)
        module = Recorder()
        getattr(trainer(tmp_path), run)(module, datamodule=data)
        assert module.evaluated == [f"q{i}" for i in range(5)]


def test_prediction_leaves_excluded_questions_out_and_takes_its_own_number_of_frames(tmp_path):
    data = datamodule(predict=ListReader(5))
    data.setup("predict")
    data.exclude(["q1", "q3", "elsewhere"])
    data.predict_num_frames = 6
    stream = data.predict_dataloader()
    samples = [sample for batch in stream for sample in batch]
    assert [sample.question.id for sample in samples] == ["q0", "q2", "q4"]
    assert [sample.clip.num_frames for sample in samples] == [6, 6, 6]
    assert len(data.questions("predict")) == 5
    data.exclude([f"q{i}" for i in range(5)])
    assert len(data.predict_dataloader()) == 0
    assert trainer(tmp_path).predict(Recorder(), datamodule=data) is None


@pytest.mark.parametrize(
    ("stage", "name"), [("fit", "train"), ("validate", "val"), ("test", "test")]
)
def test_a_missing_reader_is_named(stage, name):
    with pytest.raises(InputError, match=f"{stage} needs data.{name}"):
        VideoQADataModule().setup(stage)


def test_fit_without_validation_questions(tmp_path):
    module = Recorder()
    trainer(tmp_path, max_steps=2).fit(module, datamodule=datamodule())
    assert len(module.seen) == 2
    assert module.evaluated == []


def test_too_few_questions_for_one_batch(tmp_path):
    with pytest.raises(InputError, match="1 training questions do not fill one batch of 2"):
        trainer(tmp_path).fit(Recorder(), datamodule=datamodule(train=ListReader(1)))


def test_fit_with_validation_through_real_workers(tmp_path, make_video):
    good = make_video(tmp_path / "a b é 视频.mp4")
    data = VideoQADataModule(
        train=ListReader(4, video=good),
        val=ListReader(2, "v", video=str(tmp_path / "missing.mp4")),
        num_frames=4,
        num_workers=1,
        batch_size=2,
    )
    module = Recorder()
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert len(module.seen) == 4
    assert module.evaluated.count("v1") >= 2
    assert data._pool is None, "teardown ends the workers"
    data.num_workers = 0
    questions = data.questions("train")[:1] + data.questions("val")[:1]
    loaded = data.load(questions, 4)
    assert loaded[0].clip.frames.shape[0] == 4
    assert loaded[0].clip.fps == 8
    assert loaded[1].clip is None
    assert loaded[1].error == f"{tmp_path / 'missing.mp4'}: no such file"
    data.close()


class OwnReader(ListReader):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def read(self):
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"OwnReader gave NoneType; OwnReader.read\(\) must return a list of .*Question"),
        ([{"id": "1"}], "OwnReader gave dict at place 0; "),
        (
            [*ListReader(2).read(), *ListReader(1).read()],
            "gave the id 'q0' twice, again at place 2",
        ),
    ],
)
def test_a_reader_that_gives_something_else_is_named(given, message):
    data = VideoQADataModule(predict=OwnReader(given))
    with pytest.raises(InputError, match=message):
        data.setup("predict")


def test_a_reader_may_give_a_tuple():
    data = VideoQADataModule(predict=OwnReader(tuple(ListReader(3).read())))
    data.setup("predict")
    assert [question.id for question in data.questions("predict")] == ["q0", "q1", "q2"]
