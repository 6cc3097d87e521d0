"""Tiny classifiers of every family with random weights, and examples for them.

What takes seconds to import is imported by the fixtures: the process that deals the tests out to others needs none.
"""

import gc
import os
import re
import shutil
from collections import Counter

if shutil.which("nvidia-smi") is None:  # no GPU: kernels run in Triton's interpreter, which is chosen at its import
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too: several share few cores

import pytest
from patience import limit

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_labels": 3,
    "initializer_range": 0.1,  # five times the usual, so that layers and heads change something
}
_DISENTANGLED = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
#: Of each encoder family, what differs from :data:`SIZES`.
CONFIGS = {
    "bert": {"max_position_embeddings": 64},
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "camembert": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "electra": {"max_position_embeddings": 64, "embedding_size": 16},
    "distilbert": {"max_position_embeddings": 64, "hidden_dim": 48},
    "albert": {"max_position_embeddings": 64, "embedding_size": 16, "num_hidden_groups": 2},
    "mpnet": {"max_position_embeddings": 66},
    "deberta-v2": {"max_position_embeddings": 64, **_DISENTANGLED},
    # windows of four tokens on either side
    "modernbert": {"max_position_embeddings": 64, "local_attention": 8, **_SPECIAL},
}


def pytest_collection_modifyitems(items):
    """The files with the most slow tests first: the others fill what time is left beside the last of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish(session):
    """What is imported by now is no garbage: looking through it again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Let the limit of pytest-timeout grow with the machine's load."""
    if (seconds := getattr(item.config, "_env_timeout", None)) and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(limit(seconds)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)  # the models are too small to share out


@pytest.fixture(autouse=True)
def _seed(_one_thread):
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_dense():
    """``make_dense(family, **config)``: a Hugging Face model in evaluation mode, its weights from a seed.

    A classifier; ``auto_class="AutoModelForTokenClassification"`` and so on give it another head, or none.
    """
    import torch

    from ltp.encoders import encoder_family

    projections = re.compile(r"\bquery|\bkey|\b[qk]_lin|\battn\.[qk]\b|\bWqkv")

    def make(family, *, seed=0, auto_class="AutoModelForSequenceClassification", **config):
        adapter = encoder_family(family)
        config_class, classifier = adapter.config_class, adapter.dense_class(auto_class)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = classifier(config_class(**SIZES | CONFIGS[family] | config))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.dim() == 1:  # biases start at 0 and norms at 1, which would hide mistakes in them
                        parameter.add_(0.1 * torch.randn_like(parameter))
                    elif projections.search(name):  # attention far from uniform, so that scores spread
                        parameter.mul_(3)
        return model.eval()

    return make


@pytest.fixture(params=["bert", pytest.param("roberta", marks=pytest.mark.slow)])  # BERT's layers, other ends
def family(request):
    return request.param


@pytest.fixture
def dense(make_dense, family):
    return make_dense(family)


@pytest.fixture(scope="session")
def sentences():
    """Token ids of four examples of 14, 9, 17 and 3 tokens: [CLS] is 2, [SEP] 3."""
    import torch

    generator = torch.Generator().manual_seed(7)
    lengths = (14, 9, 17, 3)
    return [[2, *torch.randint(5, 100, (n - 2,), generator=generator).tolist(), 3] for n in lengths]


@pytest.fixture(scope="session")
def make_batch():
    """``make_batch(model, sentences, length)``: padded ``input_ids`` and ``attention_mask``."""
    import torch

    def make(model, sentences, length=None):
        dense = getattr(model, "dense", model)
        pad = dense.config.pad_token_id
        length = length or max(map(len, sentences))
        return {
            "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids in sentences]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in sentences]),
        }

    return make
