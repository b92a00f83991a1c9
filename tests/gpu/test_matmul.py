"""Products on a card: each against the reference, and a row's bits in batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import float8, reference
from rosellm.roseinfer.kernels.reference import Activation, PackedLinear
from rosellm.roseinfer.quant.formats import FORMATS
from rosellm.roseinfer.quant.scales import quantize
from tests.tiny_models import build, generate, greedy, random_prompts, write_llama

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
FORMS = {None: None, **FORMATS}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(4096, 4096), (1024, 3072), (640, 1111), (17, 33), (6144, 2048)]
ROWS = [1, 2, 15, 16, 17, 33, 64, 65, 128, 129, 257, 300]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def made(*, deterministic: bool = True) -> Any:
    """The products. Imported here alone: other tests have these kernels interpreted."""
    from rosellm.roseinfer.kernels.triton.products import Products

    return Products(CUDA, deterministic=deterministic)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)


def pair(
    n: int,
    k: int,
    name: str | None,
    dtype: torch.dtype,
    activation: Activation | None = None,
    products: Any = None,
) -> tuple[Any, PackedLinear]:
    products = products or made()
    weight, bias = values(n, k, seed=1) / k**0.5, values(n, seed=2, dtype=dtype)
    form = FORMS[name]
    if form is None:
        plain = weight.to(dtype)
        return (
            products.pack_linear(plain, bias, activation),
            reference.pack_linear(plain, bias, activation),
        )
    few = quantize(weight, form, search=False)
    return (
        products.pack_quantized(few, bias, activation, dtype),
        reference.pack_quantized(few, bias, activation, dtype),
    )


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    worst = (found.double() - wanted.double()).abs().max()
    assert worst <= tolerance * wanted.double().abs().max()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_are_the_references(n, k, dtype, name):
    products = made()
    ours, meant = pair(n, k, name, dtype)
    for rows in ROWS:
        x = values(rows, k, seed=rows, dtype=dtype)
        assert_near(products.linear(x, ours), reference.linear(x, meant), TOLERANCE[dtype])


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("activation", ["silu_mul", "gelu_tanh_mul", "gelu_erf", "gelu_tanh"])
def test_activations(activation, name):
    products = made()
    ours, meant = pair(1376, 512, name, torch.bfloat16, activation)
    for rows in (1, 20, 100, 300):
        x = values(rows, 512, seed=rows, dtype=torch.bfloat16)
        assert_near(products.linear(x, ours), reference.linear(x, meant), 2e-2)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1024, 3072), (640, 1111)])
def test_a_row_has_the_same_bits_in_every_batch(n, k, dtype, name):
    """In any of 1 to 300 rows, whichever tiles these take, and wherever among them it stands."""
    products = made()
    ours, _ = pair(n, k, name, dtype)
    x = values(300, k, dtype=dtype)
    together = products.linear(x, ours)
    for rows in range(1, 300):
        assert torch.equal(products.linear(x[:rows], ours), together[:rows]), rows
        assert torch.equal(products.linear(x[-rows:], ours), together[-rows:]), rows
    large = products.linear(x.repeat(14, 1), ours)
    assert torch.equal(large, together.repeat(14, 1))


@pytest.mark.parametrize("name", FORMS)
def test_a_gates_row_has_the_same_bits_in_every_batch(name):
    products = made()
    ours, _ = pair(2816, 1024, name, torch.bfloat16, "silu_mul")
    x = values(300, 1024, dtype=torch.bfloat16)
    together = products.linear(x, ours)
    for rows in range(1, 300):
        assert torch.equal(products.linear(x[:rows], ours), together[:rows]), rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_card_agrees(dtype):
    assert made().agree(dtype, CUDA)


@pytest.mark.parametrize("name", FORMS)
def test_a_product_is_captured_in_a_graph(name):
    products = made()
    ours, _ = pair(1024, 3072, name, torch.bfloat16)
    x = values(4, 3072, dtype=torch.bfloat16)
    wanted = products.linear(x, ours).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = products.linear(x, ours)
    found.zero_()
    graph.replay()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", FORMS)
def test_the_library_is_near(name):
    """Without the promise: cuBLAS, and for fp8 products of fp8 rows where the card has them."""
    products = made(deterministic=False)
    ours, meant = pair(1024, 3072, name, torch.bfloat16, products=products)
    for rows in (1, 16, 17, 300):
        x = values(rows, 3072, seed=rows, dtype=torch.bfloat16)
        found, wanted = products.linear(x, ours), reference.linear(x, meant)
        assert (found - wanted).float().norm() <= 0.05 * wanted.float().norm()


def test_fp8_products_are_those_of_codes():
    """``torch._scaled_mm`` against the same codes multiplied in fp32."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the card does not multiply fp8")
    x = values(20, 256, dtype=torch.bfloat16)
    few = quantize(values(64, 256, seed=1), FORMATS["fp8"])
    found = float8.scaled_product(x, few.data.view(torch.uint8), few.scales[:, 0], None)
    codes, scales = float8.rows_to_codes(x)
    rows, columns = codes.float() * scales[:, None], few.data.float() * few.scales
    assert_near(found.float(), rows @ columns.t(), 1e-2)


# -- a model ---------------------------------------------------------------------------------

PROMPTS = random_prompts([1, 5, 17, 64, 130, 7], 1003)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8, "std": 0.08}
    path = tmp_path_factory.mktemp("matmul") / "llama"
    return write_llama(path, vocab_size=1003, num_hidden_layers=3, **sizes)


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_is_the_references(model, form, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    card, host = (
        generate(
            build(model, device=device, kernels=kernels, quantization=form), PROMPTS, greedy(1)
        )
        for device, kernels in (("cuda", "auto"), ("cpu", "reference"))
    )
    for ours, theirs in zip(card, host, strict=True):
        assert ours.logprobs[0][0].chosen == pytest.approx(theirs.logprobs[0][0].chosen, abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"quantization": form} for form in FORMATS]
    + [{"kv_cache_dtype": kind} for kind in ("int8", "fp8")],
    ids=str,
)
def test_a_model_keeps_its_bits(model, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"device": "cuda", "dtype": "bfloat16", "prefix_cache": False, **settings}
    core = build(model, **settings)
    assert core.facts.invariant
    alone = [generate(core, [prompt], greedy(12))[0] for prompt in PROMPTS]
    assert generate(core, PROMPTS, greedy(12)) == alone
    chunked = build(model, **settings, max_num_batched_tokens=33)
    assert generate(chunked, PROMPTS, greedy(12)) == alone


def test_without_the_promise_the_start_says_so(model):
    core = build(model, device="cuda", dtype="bfloat16", deterministic=False)
    assert not core.facts.invariant
    assert core.facts.fingerprint.endswith("_batch-dependent")
    assert generate(core, PROMPTS, greedy(2))
