import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.plugins import FakeDecoder, ListReader
from vrts.data.datamodule import VideoQADataModule
from vrts.data.readers.plain import PlainReader
from vrts.types import InputError, Sample


class Stop(Exception):
    pass


class Recorder(pl.LightningModule):
    """Keeps the questions of each step, which is one batch, and where validations came."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.trace = []
        self.evaluated = []
        self.stop_after = stop_after

    def training_step(self, batch, batch_idx):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise Stop
        assert all(isinstance(sample, Sample) for sample in batch)
        self.manual_backward(self.layer(torch.ones(1, 1)).sum())
        self.optimizers().step()
        self.trainer.datamodule.mark_trained(batch)
        step = (batch.end.epoch, tuple(s.question.id for s in batch))
        self.seen.append(step)
        self.trace.append(step)

    def on_train_epoch_end(self):
        self.trace.append("epoch ends")

    def validation_step(self, batch, batch_idx):
        self.evaluated += [sample.question.id for sample in batch]

    def on_validation_epoch_end(self):  # before callbacks may save
        if not self.trainer.sanity_checking:
            self.trace.append("validation")

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEverywhere(pl.Callback):
    """A checkpoint in each hook of training that may write one, after all other callbacks."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, name):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-{name}.ckpt")

    def on_train_batch_end(self, trainer, *_args):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_args):
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_args):
        self.save(trainer, "epoch")

    def on_train_end(self, trainer, *_args):
        self.save(trainer, "train")


def datamodule(**kwargs):
    defaults = {"train": ListReader(7), "decoder": FakeDecoder(), "num_workers": 0}
    return VideoQADataModule(**(defaults | {"num_frames": 2, "batch_size": 2} | kwargs))


def trainer(tmp_path, callbacks=(), **kwargs):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    options = defaults | quiet | {"default_root_dir": str(tmp_path)} | kwargs
    return pl.Trainer(callbacks=list(callbacks), **options)


def fit(folder, data=None, ckpt_path=None, callbacks=(), stop_after=None, **options):
    """A run, and what was trained in it."""
    module, runner = Recorder(stop_after), trainer(folder, callbacks, **options)
    ckpt_path = None if ckpt_path is None else str(ckpt_path)
    runner.fit(
        module, datamodule=datamodule(**(data or {})), ckpt_path=ckpt_path, weights_only=True
    )
    return module, runner


def ids_of(seen, epoch):
    return [id for e, ids in seen if e == epoch for id in ids]


def test_an_epoch_has_every_question_once_and_epochs_differ(tmp_path):
    module, runner = fit(tmp_path)
    assert [len(ids) for _, ids in module.seen] == [2, 2, 2, 1] * 3
    epochs = [ids_of(module.seen, epoch) for epoch in range(3)]
    for ids in epochs:
        assert sorted(ids) == [f"q{i}" for i in range(7)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert (runner.global_step, runner.current_epoch, runner.max_epochs) == (12, 3, 3)
    assert fit(tmp_path)[0].seen == module.seen
    assert fit(tmp_path, {"seed": 1})[0].seen != module.seen


VALIDATED = {"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}


def left(trace, num_steps):
    """What comes after so many steps, from the next step on."""
    starts = [at for at, entry in enumerate(trace) if isinstance(entry, tuple)]
    return trace[starts[num_steps] :] if num_steps < len(starts) else []


def check_resumes(folder, whole, data, options, depth, steps=range(99)):
    """Go on from each checkpoint of a folder, and from those of the runs that went on."""
    paths = [path for path in folder.glob("*.ckpt") if int(path.stem.split("-")[0]) in steps]
    assert paths
    for path in paths:
        step = int(path.stem.split("-")[0])
        into = folder / path.stem
        into.mkdir()
        module, runner = fit(folder, data, path, [SaveEverywhere(into)], **options)
        wanted, got = left(whole.trace, step), module.trace
        if step % 4 == 0 and got[:1] == ["epoch ends"]:
            got = got[1:]  # of the pass before, where its end was not saved
        assert got == wanted, path
        assert (runner.global_step, runner.max_epochs) == (len(whole.seen), whole.max_epochs), path
        if depth > 1 and wanted:
            check_resumes(into, whole, data, options, depth - 1)


@pytest.fixture
def whole(tmp_path):
    """A run of two epochs with checkpoints everywhere, and how to make it go on."""

    def run(data=None, folder=tmp_path, **options):
        module, runner = fit(folder, data, callbacks=[SaveEverywhere(folder)], **options)
        module.max_epochs = runner.max_epochs
        return module

    return run


@pytest.mark.slow
@pytest.mark.parametrize("validates", [False, True])
def test_a_run_goes_on_from_every_checkpoint_of_every_hook(tmp_path, whole, validates):
    """The same questions, validations and ends of epochs, also from runs that had gone on."""
    data = {"val": ListReader(1, "v")} if validates else {}
    options = {"max_epochs": 2} | (VALIDATED if validates else {})
    check_resumes(tmp_path, whole(data, **options), data, options, depth=2)


@pytest.mark.slow
@pytest.mark.parametrize("max_epochs", [1, 2])
@pytest.mark.parametrize("cut", [2, 4, 5])
def test_a_run_that_max_steps_ended_goes_on(tmp_path, whole, max_epochs, cut):
    """Lightning takes an epoch that it cut short for a whole one, and would train one fewer."""
    if cut > 4 * max_epochs:
        pytest.skip("the run has no such step")
    options = {"max_epochs": max_epochs}
    (tmp_path / "whole").mkdir()
    uncut = whole(folder=tmp_path / "whole", **options)
    assert len(whole(max_steps=cut, **options).seen) == cut
    check_resumes(tmp_path, uncut, {}, options, depth=2, steps=[cut])
    # twice, from what was written when Lightning had counted the epoch
    again = tmp_path / "again"
    again.mkdir()
    last = tmp_path / f"{cut}-train.ckpt"
    keep = [SaveEverywhere(again)]
    twice, _ = fit(tmp_path, {}, last, keep, max_steps=cut + 1, **options)
    assert twice.seen == uncut.seen[cut : cut + 1]
    if twice.seen:
        check_resumes(again, uncut, {}, options, depth=1, steps=[cut + 1])


@pytest.mark.slow
def test_max_steps_may_be_the_only_limit(tmp_path, whole):
    module = whole(max_epochs=-1, max_steps=6)
    assert [epoch for epoch, _ in module.seen] == [0, 0, 0, 0, 1, 1]
    check_resumes(tmp_path, module, {}, {"max_epochs": -1, "max_steps": 6}, depth=2)


@pytest.mark.parametrize("stop_after", [0, 2, 3, 4, 7])
def test_what_was_given_but_not_trained_comes_again(tmp_path, whole, stop_after):
    """Saved in the middle of a batch, where it was decoded and not stepped on."""

    class SaveAtError(pl.Callback):
        def on_exception(self, trainer, *_args):
            trainer.save_checkpoint(tmp_path / "error.ckpt")

    first = Recorder(stop_after)
    with pytest.raises(Stop):
        trainer(tmp_path, [SaveAtError()], max_epochs=2).fit(first, datamodule=datamodule())
    uncut = whole(max_epochs=2)
    assert first.seen == uncut.seen[:stop_after]
    second, runner = fit(tmp_path, ckpt_path=tmp_path / "error.ckpt", max_epochs=2)
    assert second.seen == uncut.seen[stop_after:]
    assert runner.current_epoch == 2


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_goes_on_with_another_batch_size(tmp_path, whole, step, batch_size, caplog):
    uncut = whole(max_epochs=3)
    path = tmp_path / f"{step}-batch.ckpt"
    with caplog.at_level("INFO"):
        second, runner = fit(tmp_path, {"batch_size": batch_size}, path, max_epochs=3)
    for epoch in range(3):
        ids = ids_of(uncut.seen[:step] + second.seen, epoch)
        assert ids == ids_of(uncut.seen, epoch)
    assert runner.current_epoch == 3
    assert runner.global_step == step + len(second.seen)
    done = len(ids_of(uncut.seen[:step], step // 5))
    told = f"batch_size 2 -> {batch_size}: {done} of 7 questions of epoch {step // 5} are done"
    assert told in caplog.text


@pytest.mark.parametrize(("limit", "num_steps"), [(1, 3), (3, 7), (4, 12), (5, 12), (0.5, 6)])
def test_a_limit_of_batches_ends_no_pass(tmp_path, limit, num_steps):
    """Each of Lightning's epochs takes the steps that come next, up to the end of a pass."""
    module, runner = fit(tmp_path, limit_train_batches=limit)
    assert module.seen == fit(tmp_path, max_epochs=9)[0].seen[:num_steps]
    assert runner.current_epoch == 3


def test_a_resume_with_other_data_warns(tmp_path, whole):
    whole(max_steps=2)
    with pytest.warns(UserWarning, match="num_questions 7 -> 9, seed 0 -> 4"):
        fit(tmp_path, {"train": ListReader(9), "seed": 4}, tmp_path / "2-batch.ckpt")


def test_a_checkpoint_that_counted_otherwise_is_refused(tmp_path, whole):
    whole(max_steps=1)
    path = tmp_path / "1-batch.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["VideoQADataModule"] |= {"num_repeats": 0, "updates_per_rollout": 1}
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="before a batch was an optimizer step"):
        fit(tmp_path, ckpt_path=path)
    module = Recorder()
    data = datamodule(predict=ListReader(2))
    trainer(tmp_path).predict(module, datamodule=data, ckpt_path=path, weights_only=True)
    assert module.evaluated == ["q0", "q1"], "its weights are as good as any"


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


def test_fewer_questions_than_a_batch_are_one_step(tmp_path):
    module, _ = fit(tmp_path, {"train": ListReader(1), "batch_size": 4}, max_epochs=2)
    assert module.seen == [(0, ("q0",)), (1, ("q0",))]


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
    trainer(tmp_path, max_epochs=2, **VALIDATED).fit(module, datamodule=data)
    assert len(module.seen) == 4
    assert module.evaluated.count("v1") == 1
    assert data._pool is None, "teardown ends the workers"
    data.num_workers = 0
    questions = data.questions("train")[:1] + data.questions("val")[:1]
    loaded = data.load(questions, 4)
    assert loaded[0].clip.frames.shape[0] == 4
    assert loaded[0].clip.fps == 8
    assert loaded[1].clip is None
    assert loaded[1].error == f"{tmp_path / 'missing.mp4'}: no such file"
    data.close()


def test_folders_of_frames_without_a_rate_are_named_before_anything_is_decoded(tmp_path):
    (tmp_path / "frames").mkdir()
    rows = "video,question,fps\na.mp4,Why?,\nframes,What?,\nframes,Who?,{}\n"
    path = tmp_path / "mine.csv"
    (tmp_path / "a.mp4").touch()
    path.write_text(rows.format(""))
    match = rf"data\.predict: {tmp_path}/frames is a folder .* one of 1; give .*data\.frames_fps"
    with pytest.raises(InputError, match=match):
        VideoQADataModule(predict=PlainReader(str(path))).setup("predict")
    VideoQADataModule(predict=PlainReader(str(path)), frames_fps=2.0).setup("predict")
    path.write_text(rows.format("2").replace("What?,", "What?,2"))
    VideoQADataModule(predict=PlainReader(str(path))).setup("predict")


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
        ([{"id": "1"}], "OwnReader gave dict at index 0; "),
        (
            [*ListReader(2).read(), *ListReader(1).read()],
            "gave the id 'q0' twice, again at index 2",
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
