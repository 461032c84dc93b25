"""What instructions cost, beside counts by hand; which phase they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.profiling.costs import OTHER, costs_of, phase_of

TEXT = """\
HloModule jit_f, is_scheduled=true

%fused_slice (p0: f32[1000,8], p1: s32[]) -> f32[2,8] {
  %p0 = f32[1000,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %flat = f32[1000,8]{1,0} bitcast(%p0)
  %p1 = s32[] parameter(1)
  %part = f32[2,8]{1,0} dynamic-slice(%flat, %p1, %zero), dynamic_slice_sizes={2,8}, COHORT
  ROOT %twice = f32[2,8]{1,0} add(%part, %part), LOCAL
}

%fused_write (q0: f32[1000,8], q1: f32[2,8], q2: s32[]) -> f32[1000,8] {
  %q0 = f32[1000,8]{1,0} parameter(0)
  %q1 = f32[2,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = f32[1000,8]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

%body (b: (s32[], f32[1000,8])) -> (s32[], f32[1000,8]) {
  %b = (s32[], /*index=1*/f32[1000,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[1000,8]{1,0} get-tuple-element(%b), index=1
  %slice_add_fusion = f32[2,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused_slice, LOCAL
  %write_fusion = f32[1000,8]{1,0} fusion(%x, %slice_add_fusion, %i), kind=kLoop, calls=%fused_write
  ROOT %out = (s32[], f32[1000,8]{1,0}) tuple(%i, %write_fusion)
}

%test (t: (s32[], f32[1000,8])) -> pred[] {
  %t = (s32[], f32[1000,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%j, %j), direction=LT
}

ENTRY %main (a: f32[1000,8], c: f32[4,6,6,3], k: f32[3,3,3,5]) -> f32[1000,8] {
  %a = f32[1000,8]{1,0} parameter(0)
  %c = f32[4,6,6,3]{3,2,1,0} parameter(1)
  %k = f32[3,3,3,5]{3,2,1,0} parameter(2)
  %n = s32[] constant(0)
  %convolved = f32[4,4,4,5]{3,2,1,0} convolution(%c, %k), window={size=3x3}, LABELS, SERVER
  %start = (s32[], f32[1000,8]{1,0}) tuple(%n, %a)
  %while.7 = (s32[], f32[1000,8]{1,0}) while(%start), condition=%test, body=%body, RECORD
  %copied = f32[4,4,4,5]{3,2,1,0} copy(%convolved)
  %random = u32[1000]{0} iota(), iota_dimension=0
  ROOT %last = f32[1000,8]{1,0} get-tuple-element(%while.7), index=1
}
"""
SCOPES = {
    "COHORT": "jit(f)/local work/cohort/gather",
    "LOCAL": "jit(f)/local work/mul",
    "SERVER": "jit(f)/vmap(server)/conv",
    "RECORD": "jit(f)/record/while",
}


@pytest.fixture(scope="module")
def costs():
    text = TEXT.replace("LABELS", "dim_labels=b01f_01io->b01f")
    for word, meaning in SCOPES.items():
        text = text.replace(word, f'metadata={{op_name="{meaning}"}}')
    return costs_of(text)


def test_a_phase_is_the_innermost_scope_but_an_attacks_trials_are_its_own():
    assert phase_of("jit(f)/while/body/vmap(jvp(local work))/dot_general") == "local work"
    assert phase_of("jit(f)/local work/while/vmap(cohort)/gather") == "cohort"
    assert phase_of("jit(f)/server/aggregation/pre-aggregation/dot") == "pre-aggregation"
    assert phase_of("jit(f)/attack/while/aggregation/pre-aggregation/dot") == "attack"
    assert phase_of("jit(f)/local work/cohort/attack/add") == "attack"
    # Of a stream of updates, wherever it is read:
    assert phase_of("jit(f)/attack/while/local work/vmap(jvp())/dot") == "local work"
    assert phase_of("jit(f)/attack/local work/while/vmap(local work)/cohort/gather") == "cohort"
    assert phase_of("jit(f)/server/aggregation/while/vmap(local work)/dot") == "local work"
    assert phase_of("jit(records)/serve/add") is None


def test_a_fusion_reads_and_writes_only_the_slices_that_it_touches(costs):
    read = costs["slice_add_fusion"]
    assert read.bytes == 2 * 8 * 4 + 4 + 2 * 8 * 4  # the slice, its place, the result
    assert read.flops == 2 * 8
    assert costs["write_fusion"].bytes == 2 * 8 * 4 + 4 + 2 * 8 * 4
    assert costs["write_fusion"].flops == 0


def test_phases_come_from_scopes_then_loops_then_sources(costs):
    assert costs["slice_add_fusion"].phase == "local work"
    assert costs["slice_add_fusion"].spans  # it draws the batch, too
    assert costs["write_fusion"].phase == "record"  # as its loop
    assert not costs["write_fusion"].spans
    assert costs["copied"].phase == "server"  # as what it copies
    assert costs["random"].phase == OTHER
    assert costs["while.7"].control
    assert not costs["copied"].control


def test_what_fusions_are_made_of_is_no_instruction_that_runs(costs):
    assert set(costs) == {
        *("slice_add_fusion", "write_fusion", "less", "convolved", "while.7", "copied", "random"),
    }


def test_a_convolution_by_hand(costs):
    # 4 images, 4 x 4 places, 5 filters of 3 x 3 x 3 weights, a multiplication and an addition each
    assert costs["convolved"].flops == 2 * 4 * 4 * 4 * 5 * 27
    assert costs["convolved"].bytes == 4 * (4 * 6 * 6 * 3 + 3 * 3 * 3 * 5 + 4 * 4 * 4 * 5)


# The work of these two programs is the same, however quickly they are compiled.
@pytest.mark.parametrize("batch", [1, 7])
def test_products_of_a_compiled_program_by_hand(batch):
    def f(x, y):
        with jax.named_scope("aggregation"):
            return jnp.einsum("bij,bkj->bik", x, y)

    x, y = jnp.zeros((batch, 3, 5)), jnp.zeros((batch, 4, 5))
    found = costs_of(jax.jit(f).lower(x, y).compile().as_text())
    assert sum(c.flops for c in found.values()) == 2 * batch * 3 * 4 * 5
    assert {c.phase for c in found.values() if c.flops} == {"aggregation"}


def test_bytes_of_a_compiled_copy_by_hand():
    found = costs_of(jax.jit(lambda x: x + 1).lower(jnp.zeros((32, 16))).compile().as_text())
    total = sum(c.bytes for c in found.values())
    np.testing.assert_allclose(total, 2 * 32 * 16 * 4, rtol=0.01)
