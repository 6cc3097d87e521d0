"""Batches: which rows, in which order, on which process, padded how; and the order of a resumed run."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from ltp.data.batching import TrainBatches, check_batch_size, evaluation_batches, global_batches, steps_in_epoch
from ltp.data.datamodule import Collator, GLUEDataModule
from ltp.data.demo import demo_rows, demo_tokenizer
from ltp.data.sources import Splits
from ltp.data.tasks import TASKS
from ltp.errors import UserError

LENGTHS = np.random.default_rng(0).integers(3, 60, size=107)


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def demo_splits(rows=22, validation=7):
    train = datasets.Dataset.from_list(demo_rows("train", rows=rows))
    return Splits(
        TASKS["demo"],
        train,
        {"validation": datasets.Dataset.from_list(demo_rows("validation", rows=validation))},
    )


def on_rank(datamodule, rank, world_size):
    """Attach what the data module reads of a Trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    fit_loop = SimpleNamespace(epoch_progress=progress, restarting=False)
    datamodule.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, fit_loop=fit_loop)
    return datamodule


# -- the order -----------------------------------------------------------------------------------------------


def test_each_row_once_and_the_smaller_batch_last():
    batches = global_batches(LENGTHS, 8, seed=3, epoch=1)
    assert sorted(np.concatenate(batches)) == list(range(107))
    assert [len(batch) for batch in batches] == [8] * 13 + [3]


def test_the_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return np.concatenate(global_batches(LENGTHS, 8, seed, epoch)).tolist()

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)
    assert order(0, 1) != order(1, 0)


def test_batches_hold_rows_of_like_length_in_random_order():
    lengths = np.random.default_rng(1).integers(3, 60, size=4_000)
    batches = global_batches(lengths, 16, seed=0, epoch=0)
    longest = np.array([lengths[batch].max() for batch in batches])
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded / lengths.sum() < 1.04  # unsorted: about 1.8
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2  # neighbours are unrelated


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_every_world_size_takes_the_same_steps(world_size, accumulate):
    lengths = LENGTHS[:103]  # 12 full batches of 8 and one of 7
    ranks = [
        list(TrainBatches(lengths, 8, accumulate=accumulate, world_size=world_size, rank=rank, seed=5))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {13 * accumulate}
    for step, whole in enumerate(global_batches(lengths, 8, seed=5, epoch=0)):
        turns = slice(step * accumulate, (step + 1) * accumulate)
        parts = [part for batches in ranks for part in batches[turns]]
        assert sorted(row for part in parts for row in part) == sorted(whole)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_batch_smaller_than_its_parts_is_dropped():
    assert (steps_in_epoch(107, 8, parts=1), steps_in_epoch(107, 8, parts=2)) == (14, 14)
    assert steps_in_epoch(107, 8, parts=4) == 13  # three rows left for four micro-batches
    assert steps_in_epoch(2_490, 64, parts=1) == 39  # RTE
    assert steps_in_epoch(3, 8, parts=4) == 0
    batches = TrainBatches(LENGTHS, 8, accumulate=2, world_size=2)
    assert len(batches) == len(list(batches)) == 26
    assert all(len(batch) == 2 for batch in batches)


def test_set_epoch_changes_the_order():
    batches = TrainBatches(LENGTHS, 8)
    first = list(batches)
    assert list(batches) == first
    batches.sampler.set_epoch(1)  # as Lightning calls it
    assert list(batches) != first
    assert len(batches) == 14


@pytest.mark.parametrize("done", [0, 1, 5, 27])
def test_resume_leaves_out_what_was_done_once(done):
    whole = TrainBatches(LENGTHS, 8, accumulate=2, seed=1)
    whole.set_epoch(2)
    resumed = TrainBatches(LENGTHS, 8, accumulate=2, seed=1)
    resumed.resume(2, done)
    assert len(resumed) == 28  # Lightning counts from the start of the epoch
    assert list(resumed) == list(whole)[done:]
    assert list(resumed) == list(whole)


def test_resume_means_its_own_epoch():
    batches = TrainBatches(LENGTHS, 8)
    batches.resume(2, 3)
    batches.set_epoch(3)
    assert len(list(batches)) == 14


def test_loss_weights_make_means_over_micro_batches_means_over_rows():
    losses = np.random.default_rng(2).random(103)
    for world_size, accumulate in ((1, 1), (2, 1), (2, 2), (4, 1)):
        ranks = [
            TrainBatches(LENGTHS[:103], 8, accumulate=accumulate, world_size=world_size, rank=rank)
            for rank in range(world_size)
        ]
        for step, whole in enumerate(global_batches(LENGTHS[:103], 8, seed=0, epoch=0)):
            weighted = []
            for batches in ranks:
                for index in range(step * accumulate, (step + 1) * accumulate):
                    rows = list(batches)[index]
                    weighted.append(losses[rows].mean() * batches.loss_weight(index, len(rows)))
            assert np.mean(weighted) == pytest.approx(losses[whole].mean())


def test_loss_weights_by_hand():
    batches = TrainBatches(LENGTHS[:23], 8, accumulate=2)  # 8, 8 and 7 = 4 + 3
    assert [batches.loss_weight(index, 4) for index in range(4)] == [1.0] * 4
    assert (batches.loss_weight(4, 4), batches.loss_weight(5, 3)) == pytest.approx((4 * 2 / 7, 3 * 2 / 7))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_visits_each_row_once_sorted_by_length(world_size):
    shards = [evaluation_batches(LENGTHS, 10, world_size=world_size, rank=rank) for rank in range(world_size)]
    assert sorted(row for shard in shards for batch in shard for row in batch) == list(range(107))
    for shard in shards:
        lengths = [LENGTHS[row] for batch in shard for row in batch]
        assert lengths == sorted(lengths, reverse=True)
        assert all(len(batch) == 10 for batch in shard[:-1])


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "works"),
    [(30, 4, 2, "24 or 32"), (3, 2, 2, "4"), (0, 1, 1, "1"), (-4, 2, 1, "2")],
)
def test_a_batch_that_cannot_be_split(batch_size, world_size, accumulate, works):
    with pytest.raises(UserError) as caught:
        check_batch_size(batch_size, world_size, accumulate)
    assert str(caught.value) == (
        f"batch_size={batch_size} is the batch of an optimiser step and must be a multiple of trainer.devices"
        f" ({world_size}) x trainer.accumulate_grad_batches ({accumulate}) = {world_size * accumulate};"
        f" {works} would work."
    )


# -- the batches ---------------------------------------------------------------------------------------------


def test_collator_pads_on_the_right_to_the_longest():
    rows = [
        {
            "input_ids": [2, 8, 9, 3],
            "token_type_ids": [0, 0, 1, 1],
            "attention_mask": [1, 1, 1, 1],
            "label": 1,
        },
        {"input_ids": [2, 3], "token_type_ids": [0, 1], "attention_mask": [1, 1], "label": 0},
    ]
    batch = Collator(7, TASKS["demo"])(rows)
    assert batch["input_ids"].tolist() == [[2, 8, 9, 3], [2, 3, 7, 7]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    labels = Collator(0, TASKS["stsb"])([{"input_ids": [1], "label": 2.5}])["labels"]
    assert (labels.tolist(), labels.dtype) == ([2.5], torch.float32)


def test_batches_of_the_data_module(tokenizer):
    datamodule = GLUEDataModule(demo_splits(), tokenizer, batch_size=4, eval_batch_size=3)
    assert datamodule.steps_per_epoch == 6
    assert datamodule.validation_splits == ("validation",)
    datamodule.setup()
    batches = list(datamodule.train_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert set(batches[0]) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    seen = {
        (tokenizer.decode(ids[mask.bool()], skip_special_tokens=True), label.item())
        for batch in batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    }
    assert seen == {(row["sentence"].replace(" .", "."), row["label"]) for row in demo_rows("train", rows=22)}
    [validation] = datamodule.val_dataloader()
    assert [len(batch["labels"]) for batch in validation] == [3, 3, 1]
    assert [datamodule.loss_weight(index, 4) for index in range(5)] == [1.0] * 5
    assert datamodule.loss_weight(5, 2) == 1.0


def test_pairs_are_truncated_and_regression_labels_are_floats(tokenizer):
    rows = [{"sentence1": "good " * 50, "sentence2": "bad", "label": 2.5}] * 4
    split = datasets.Dataset.from_list(rows)
    datamodule = GLUEDataModule(
        Splits(TASKS["stsb"], split, {"validation": split}), tokenizer, batch_size=2, max_length=10
    )
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert words == ["[CLS]", *["good"] * 6, "[SEP]", "bad", "[SEP]"]
    assert batch["token_type_ids"][0].tolist() == [0] * 8 + [1] * 2
    assert batch["labels"].dtype == torch.float32


def test_mnli_has_a_loader_for_each_validation_set(tokenizer):
    def split(count):
        return datasets.Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 2}] * count)

    splits = Splits(TASKS["mnli"], split(4), {"validation_matched": split(3), "validation_mismatched": split(5)})
    datamodule = GLUEDataModule(splits, tokenizer, batch_size=4)
    datamodule.setup("validate")
    assert datamodule.validation_splits == ("validation_matched", "validation_mismatched")
    assert [sum(len(b["labels"]) for b in loader) for loader in datamodule.val_dataloader()] == [3, 5]


def test_two_ranks_share_the_batches(tokenizer):
    def rows(loader):
        return [sorted(map(tuple, batch["input_ids"].tolist())) for batch in loader]

    ranks = []
    for rank in range(2):
        datamodule = on_rank(GLUEDataModule(demo_splits(), tokenizer, batch_size=4, accumulate=2), rank, 2)
        assert datamodule.steps_per_epoch == 5  # two rows left for four micro-batches
        datamodule.setup("fit")
        ranks.append((len(rows(datamodule.train_dataloader())), datamodule.val_dataloader()[0]))
    assert [count for count, _ in ranks] == [10, 10]
    assert [sum(len(batch["labels"]) for batch in loader) for _, loader in ranks] == [4, 3]


def test_early_errors(tokenizer):
    def set_up(rows=22, validation=7, world_size=1, **arguments):
        arguments = {"batch_size": 4} | arguments
        on_rank(GLUEDataModule(demo_splits(rows, validation), tokenizer, **arguments), 0, world_size).setup()

    def complaint(**arguments):
        with pytest.raises(UserError) as caught:
            set_up(**arguments)
        return str(caught.value)

    assert complaint(max_length=600) == "task.max_length=600: the model reads at most 512 tokens."
    assert complaint(max_length=2) == "task.max_length=2: too short; 2 tokens are special."
    assert complaint(eval_batch_size=0) == "trainer.eval_batch_size=0: must be at least 1."
    assert complaint(accumulate=0) == "trainer.accumulate_grad_batches=0: must be at least 1."
    assert complaint(accumulate=3).startswith("batch_size=4 is the batch of an optimiser step and must be")
    assert complaint(world_size=3).endswith("accumulate_grad_batches (1) = 3; 3 or 6 would work.")
    assert complaint(rows=2, world_size=4) == (
        "The training split has 2 rows, too few for trainer.devices (4) x trainer.accumulate_grad_batches (1) = 4."
    )
    assert complaint(validation=1, world_size=2) == "validation has 1 rows, too few for trainer.devices=2."
    with pytest.raises(RuntimeError, match="loss_weight is known once train_dataloader was called"):
        GLUEDataModule(demo_splits(), tokenizer, batch_size=4).loss_weight(0, 4)


def test_a_tokenizer_without_padding():
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(UserError, match=r"^The tokenizer '' has no padding token; give it one\.$"):
        GLUEDataModule(demo_splits(), tokenizer, batch_size=4)


def test_progress_bars_are_left_as_they_were(tokenizer, capfd):
    shown = datasets.are_progress_bars_disabled()
    GLUEDataModule(demo_splits(), tokenizer, batch_size=4).setup()
    assert datasets.are_progress_bars_disabled() == shown
    assert "Map" not in capfd.readouterr().err


# -- resuming under Lightning --------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Records the rows of each training step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch["input_ids"].sum(dim=1).tolist()))
        return self.weight * len(batch["labels"])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEverywhere(pl.Callback):
    """Saves checkpoints at all the moments at which ModelCheckpoint can."""

    def __init__(self, directory):
        self.directory = directory

    def _save(self, trainer, moment):
        trainer.save_checkpoint(self.directory / f"{moment}-{trainer.current_epoch}-{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_idx % 2 == 1:  # between steps: two micro-batches make one
            self._save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self._save(trainer, "epoch")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_sees_exactly_the_rows_that_were_left(tokenizer, tmp_path, num_workers):
    splits = demo_splits(rows=14, validation=2)  # batches of 4, 4, 4 and 2

    def fit(callbacks=(), checkpoint=None):
        module = Recorder()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, val_check_interval=4,
            use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        datamodule = GLUEDataModule(splits, tokenizer, batch_size=4, accumulate=2, num_workers=num_workers)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        return module.seen

    whole = fit([SaveEverywhere(tmp_path)])
    assert [(epoch, index) for epoch, index, _ in whole] == [(epoch, index) for epoch in range(2) for index in range(8)]
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 8 + 4 + 2
    for path in checkpoints if num_workers == 0 else checkpoints[2:5]:
        steps = int(path.stem.rpartition("-")[2])
        assert fit(checkpoint=path) == whole[steps * 2 :], path.stem


def test_a_long_pair_is_cut_before_it_is_tokenised(tokenizer):
    """Truncating a pair takes memory that grows with the product of their lengths."""
    seen = []

    class Watched:
        pad_token_id, model_max_length = tokenizer.pad_token_id, tokenizer.model_max_length
        num_special_tokens_to_add = staticmethod(tokenizer.num_special_tokens_to_add)

        def __call__(self, *texts, **arguments):
            if arguments.get("truncation"):
                seen.append(max(len(text) for column in texts for text in column))
            return tokenizer(*texts, **arguments)

    pair = {"sentence1": "a good film " * 20_000, "sentence2": "bad " * 50_000, "label": 1}
    split = datasets.Dataset.from_list([pair, {"sentence1": "good", "sentence2": "bad", "label": 0}])
    module = GLUEDataModule(Splits(TASKS["mrpc"], split, {"validation": split}), Watched(), batch_size=2, max_length=32)
    module.setup("validate")
    (batch,) = module.val_dataloader()[0]
    assert max(seen) < 3000
    wanted = tokenizer("a good film " * 100, "bad " * 200, truncation=True, max_length=32)["input_ids"]
    assert wanted in batch["input_ids"].tolist()
