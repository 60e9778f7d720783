"""Traffic counted in the text of a compiled program, on literals with known byte counts."""

import pytest

from musiclm_jax.planning import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%inner (p: f32[6,100]{1,0}, i: s32[]) -> f32[1,100] {
  %p = f32[6,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %layer = f32[1,100]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,100}
}

%fused (w: f32[6,100], n: s32[], x: bf16[100]) -> f32[100] {
  %w = f32[6,100]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = bf16[100]{0} parameter(2)
  %row = f32[1,100]{1,0} fusion(%w, %n), kind=kLoop, calls=%inner
  %flat = f32[100]{0} bitcast(%row)
  %wide = f32[100]{0} convert(%x)
  ROOT %product = f32[100]{0} multiply(%flat, %wide)
}

%body (state: (s32[], f32[6,100], bf16[100])) -> (s32[], f32[6,100], bf16[100]) {
  %state = (s32[], f32[6,100]{1,0}, bf16[100]{0}) parameter(0)
  %n.1 = s32[]{:S(6)} get-tuple-element(%state), index=0
  %w.1 = f32[6,100]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %x.1 = bf16[100]{0:T(1024)(2,1)} get-tuple-element(%state), index=2
  %y = f32[100]{0:T(128)} fusion(%w.1, %n.1, %x.1), kind=kLoop, calls=%fused
  %near = f32[100]{0:T(128)S(1)} copy(%y)
  %total = f32[100]{0:T(128)} all-reduce(%near), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %x.2 = bf16[100]{0:T(1024)(2,1)} convert(%total)
  ROOT %next = (s32[], f32[6,100]{1,0}, bf16[100]{0}) tuple(%n.1, %w.1, %x.2)
}

%condition (state.1: (s32[], f32[6,100], bf16[100])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %state.1 = (s32[], f32[6,100]{1,0}, bf16[100]{0}) parameter(0)
  %n.2 = s32[] get-tuple-element(%state.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%n.2, %limit), direction=LT
}

ENTRY %main (w.2: f32[6,100], x.3: bf16[100]) -> bf16[100] {
  %w.2 = f32[6,100]{1,0} parameter(0)
  %x.3 = bf16[100]{0} parameter(1)
  %start = s32[] constant(0)
  %first = (s32[], f32[6,100]{1,0}, bf16[100]{0}) tuple(%start, %w.2, %x.3)
  %loop = (s32[], f32[6,100]{1,0}, bf16[100]{0}) while(%first), condition=%condition, body=%body
  %last = bf16[100]{0} get-tuple-element(%loop), index=2
  %sent = bf16[800]{0} all-gather(%last), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %out = bf16[100]{0} slice(%sent), slice={[0:100]}
}
"""


def test_loops_count_every_iteration_and_slices_only_their_bytes():
    found = hlo.traffic(PROGRAM)
    fusion = 400 + 200 + 400  # one row of w, x, the result; n is in on-chip memory
    copy, reduce, convert = 400, 400, 400 + 200  # the copy is read from HBM, its result is not written there
    assert found.hbm == 6 * (fusion + copy + reduce + convert) + (200 + 1600) + 2 * 200
    assert found.collectives == {"all-reduce": 6 * 2 * 3 / 4 * 400, "all-gather": 7 / 8 * 1600}
    assert found.collective_counts == {"all-reduce": 6, "all-gather": 1}


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups=[16,8]<=[8,16]T(1,0)", 8),
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=mesh['axis_0'=128] {'axis_0'}", 128),
        ("replica_groups=mesh['a'=4,'b'=2,'c'=8] {'a','b'}", 8),
        ("replica_groups=mesh['a'=16] {'a':(1)4}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}", 2),
    ],
)
def test_replica_groups_in_every_form(groups, size):
    assert hlo.group_size(f", channel_id=3, {groups}, use_global_device_ids=true") == size


def test_updates_in_place_move_the_update():
    fused = """%fused (whole: f32[6,100], part: f32[1,100], n: s32[]) -> f32[6,100] {
  %whole = f32[6,100]{1,0} parameter(0)
  %part = f32[1,100]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[6,100]{1,0} dynamic-update-slice(%whole, %part, %n, %zero)
}

ENTRY %main (w: f32[6,100], p: f32[1,100], i: s32[]) -> f32[6,100] {
  %w = f32[6,100]{1,0} parameter(0)
  %p = f32[1,100]{1,0} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  ROOT %out = f32[6,100]{1,0} fusion(%w, %p, %i), kind=kLoop, calls=%fused
}
"""
    assert hlo.traffic(fused).hbm == 400 + 400


def test_a_kernel_moves_its_operands_and_results_and_a_send_goes_between_slices():
    text = """ENTRY %main (q: bf16[2,64,256], b: f32[1,384]) -> bf16[2,64,256] {
  %q = bf16[2,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[1,384]{1,0:T(1,128)} parameter(1)
  %kernel = (bf16[2,64,256]{2,1,0:T(8,128)(2,1)}, f32[2,256]{1,0:T(2,128)S(1)}) custom-call(%q, %b), custom_call_target="tpu_custom_call"
  %o = bf16[2,64,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%kernel), index=0
  %token = token[] after-all()
  %send = (f32[1,384]{1,0}, u32[]{:S(2)}, token[]) send(%b, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %to_host = (f32[1,384]{1,0}, u32[]{:S(2)}, token[]) send(%b, %token), channel_id=3, is_host_transfer=true
  ROOT %out = bf16[2,64,256]{2,1,0:T(8,128)(2,1)} copy(%o)
}
"""  # noqa: E501
    found, array = hlo.traffic(text), 2 * 64 * 256 * 2
    kernel = array + 4 * 384 + array  # writes to on-chip memory do not count
    assert found.hbm == kernel + 2 * 4 * 384 + 2 * array and found.slices == 4 * 384


def test_instructions_that_cannot_be_counted_are_named():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.traffic("nothing")
    with pytest.raises(ValueError, match="how often loop loop runs"):
        hlo.traffic(PROGRAM.replace("constant(6)", "parameter(1)"))
    with pytest.raises(ValueError, match="groups of a collective"):
        hlo.traffic(PROGRAM.replace("replica_groups=[2,4]<=[8]", "replica_groups=none"))


def test_collectives_and_cudnns_attention_as_gpus_have_them():
    """Started and ended, several arrays in one, and a call that reads its operands once."""
    program = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (q: bf16[2,8], w: f32[64], v: f32[32]) -> bf16[2,8] {
  %q = bf16[2,8]{1,0} parameter(0)
  %w = f32[64]{0} parameter(1)
  %v = f32[32]{0} parameter(2)
  %g = ((f32[64]{0}, f32[32]{0}), (f32[512]{0}, f32[256]{0})) all-gather-start(%w, %v), replica_groups=[1,8]<=[8], dimensions={0}
  %g.1 = (f32[512]{0}, f32[256]{0}) all-gather-done(%g)
  %s = ((f32[64]{0}, f32[32]{0}), (f32[8]{0}, f32[4]{0})) reduce-scatter-start(%w, %v), replica_groups=[1,8]<=[8], to_apply=%add
  %s.1 = (f32[8]{0}, f32[4]{0}) reduce-scatter-done(%s)
  %r = f32[64]{0} all-reduce-start(%w), replica_groups=[1,8]<=[8], to_apply=%add
  %r.1 = f32[64]{0} all-reduce-done(%r)
  %c = (bf16[2,8]{1,0}, f32[2]{0}, u8[0]{0}) custom-call(%q, %q), custom_call_target="__cudnn$fmhaScaleBiasSoftmax"
  ROOT %o = bf16[2,8]{1,0} get-tuple-element(%c), index=0
}
"""  # noqa: E501
    found = hlo.traffic(program)
    share = 7 / 8
    assert found.collectives == {
        "all-gather": share * 4 * (512 + 256),
        "reduce-scatter": 7 * 4 * (8 + 4),
        "all-reduce": 2 * share * 4 * 64,
    }
    computations, entry = hlo.parse(program)
    attention = computations[entry]["c"]
    assert hlo.moved_bytes(attention, computations[entry], computations) == 2 * 32 + (32 + 8)
