"""What users of Hugging Face expect of the classifier: its loss, its settings by name, the Trainer."""

import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainingArguments

from ltp import LTPForSequenceClassification, prune


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        (None, 3, torch.tensor([0, 2, 1, 1])),
        (None, 3, torch.tensor([[0], [2], [1], [1]])),
        (None, 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
        (None, 1, torch.tensor([0.5, -1, 2, 0])),
        (None, 1, torch.tensor([[0.5], [-1], [2], [0]])),
        ("regression", 3, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))),
        ("multi_label_classification", 1, torch.tensor([[1.0], [0], [1], [1]])),
        ("single_label_classification", 3, torch.tensor([0, 2, 1, 1])),
    ],
)
def test_the_loss_is_hugging_faces(make_dense, make_batch, sentences, problem_type, num_labels, labels):
    dense = make_dense("bert", num_labels=num_labels)
    dense.config.problem_type = problem_type
    model = LTPForSequenceClassification.from_dense(dense)
    batch = make_batch(dense, sentences)
    loss = model(**batch, labels=labels).loss
    torch.testing.assert_close(loss, dense(**batch, labels=labels).loss)


def test_the_method_has_its_name_of_the_command_line(make_dense):
    assert prune(make_dense("bert"), "threshold").config.prune_mode == "absolute_threshold"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("final_threshold", "final_threshold is an unknown pruning setting; did you mean final_token_threshold"),
        ("colour", "colour is an unknown pruning setting; prune_mode "),
        ("target_flops", "target_flops needs training or calibration: python -m ltp.train prune=threshold "),
    ],
)
def test_an_unknown_setting_is_refused(make_dense, setting, message):
    dense = make_dense("bert")
    for model in (dense, prune(dense)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            prune(model, **{setting: 0.5})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        LTPForSequenceClassification.from_dense(dense, **{setting: 0.5})


def test_the_trainer_computes_metrics_of_logits(make_dense, sentences, tmp_path):
    model = prune(make_dense("bert"), "topk", token_keep_rate=0.2)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": len(ids) % 3} for ids in sentences]

    def collate(rows):
        return {
            name: torch.tensor([row[name][:3] if name != "labels" else row[name] for row in rows]) for name in rows[0]
        }

    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}

    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=2, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, eval_dataset=rows, data_collator=collate, compute_metrics=compute_metrics)
    assert "eval_accuracy" in trainer.evaluate()
    assert seen[0].shape == (4, 3)


class TestSizes:
    def test_token_embeddings_are_resized(self, make_dense, make_batch, sentences, tmp_path):
        model = prune(make_dense("bert"), "topk", token_keep_rate=0.2)
        batch = make_batch(model, sentences)
        expected = model(**batch).logits
        model.resize_token_embeddings(120)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.vocab_size == loaded.dense.config.vocab_size == model.dense.config.vocab_size == 120
        torch.testing.assert_close(loaded(**batch).logits, expected)
        batch["input_ids"][0, 1] = 119
        assert loaded(**batch).logits.isfinite().all()

    def test_another_number_of_labels_is_another_head(self, make_dense, make_batch, sentences, tmp_path):
        prune(make_dense("bert")).save_pretrained(tmp_path)
        config = AutoConfig.from_pretrained(tmp_path)
        config.num_labels = 5
        model = LTPForSequenceClassification.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
        labels = torch.tensor([0, 4, 3, 2])
        output = model(**make_batch(model, sentences), labels=labels)
        torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
        assert output.logits.shape == (4, 5)


class TestArguments:
    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_attention_that_hugging_face_has_everywhere_is_accepted(self, make_dense, tmp_path, implementation):
        prune(make_dense("bert")).save_pretrained(tmp_path)
        LTPForSequenceClassification.from_pretrained(tmp_path, attn_implementation=implementation)

    def test_other_attention_is_refused(self, make_dense):
        with pytest.raises(ValueError, match=r"^attn_implementation='flash_attention_2': a pruned encoder needs "):
            prune(make_dense("bert")).set_attn_implementation("flash_attention_2")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"attention_mask": torch.ones(2, 1, 5, 5)},
                r"attention_mask has the shape \(2, 1, 5, 5\); give one of \(2, 5",
            ),
            ({"attention_mask": torch.ones(2, 3)}, r"attention_mask has the shape \(2, 3\); give one of \(2, 5\)"),
            ({"attention_mask": torch.zeros(2, 5) - 1e9}, "attention_mask holds other values than 0 and 1"),
            ({"input_ids": torch.ones(0, 5, dtype=torch.int64)}, r"the batch is empty: its shape is \(0, 5\)"),
            ({"input_ids": torch.ones(2, 0, dtype=torch.int64)}, r"the batch is empty: its shape is \(2, 0\)"),
            (
                {"input_ids": torch.ones(1, 65, dtype=torch.int64)},
                "an example has 65 tokens; the encoder has 64 positions",
            ),
            ({"head_mask": torch.ones(6, 4)}, "head_mask is not supported; leave it out"),
        ],
    )
    def test_what_is_wrong_is_named(self, make_dense, arguments, message):
        model = prune(make_dense("bert"), "topk")
        with pytest.raises(ValueError, match=f"^{message}"):
            model(**{"input_ids": torch.ones(2, 5, dtype=torch.int64)} | arguments)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # transformers 5.17's name
class TestGradientCheckpointing:
    @pytest.mark.parametrize("execution", ["packed", "masked"])
    @pytest.mark.parametrize("masking_mode", ["hard", "soft", "survival"])
    def test_loss_and_gradients_are_the_same(self, make_dense, make_batch, sentences, execution, masking_mode):
        model = prune(
            make_dense("bert"), masking_mode=masking_mode, final_token_threshold=0.05, lambda_threshold=0.1
        ).train()
        model.execution = execution
        batch = make_batch(model, sentences)

        def gradients():
            model.zero_grad()
            torch.manual_seed(1)  # dropout
            loss = model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss
            loss.backward()
            return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

        expected = gradients()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.testing.assert_close(gradients(), expected)

    def test_fewer_activations_are_kept(self, make_dense, make_batch, sentences):
        model = prune(make_dense("bert")).train()
        kept = []

        def bytes_kept():
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
                model(**make_batch(model, sentences * 8))
            return sum(kept)

        everything = bytes_kept()
        model.gradient_checkpointing_enable()
        assert bytes_kept() < 0.3 * everything


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # transformers 5.17's name
class TestAdapters:
    def test_lora_trains_on_its_usual_targets_and_merges(self, make_dense, make_batch, sentences):
        dense = make_dense("bert")
        model = prune(dense, "topk", token_keep_rate=0.2)
        batch = make_batch(model, sentences)
        unchanged = model(**batch).logits
        targets = ["query", "value", "dense"]
        adapted = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False)
        )
        adapted(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
        assert any("intermediate.dense.lora_A" in name for name in trained)
        expected = adapted.eval()(**batch).logits
        assert not torch.allclose(expected, unchanged)
        with pytest.raises(ValueError, match=r"Merge adapters into the weights first"):
            model.deploy()
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(merged.deploy()(**batch).logits, expected, rtol=0, atol=1e-5)


def test_weights_of_version_01_load(make_dense, make_batch, sentences, tmp_path):
    """They named the dense classifier's part of the weights ``dense.…``."""
    model = prune(make_dense("bert"), final_token_threshold=0.05)
    with torch.no_grad():
        model.thresholds.mul_(1.5)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.replace("dense_model.", "dense.", 1): value for name, value in weights.items()}
    assert len(old.keys() - weights.keys()) == len(weights) - 1
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    batch = make_batch(model, sentences)
    expected = model(**batch)
    for load in (LTPForSequenceClassification.from_pretrained, AutoModelForSequenceClassification.from_pretrained):
        output = load(tmp_path)(**batch)
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.token_lengths, expected.token_lengths)
    other = prune(make_dense("bert", seed=1), final_token_threshold=0.05)
    other.load_state_dict(old)  # as Lightning's checkpoints are
    assert torch.equal(other(**batch).logits, expected.logits)
