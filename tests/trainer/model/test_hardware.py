"""What a machine is called, and whether its CPU is asked for bf16."""

import pytest
import torch
from bestiary.trainer.model.backbones import choose_dtype
from bestiary.trainer.model.hardware import cpu_has_fast_bf16, hardware_in_words

AMX, AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"


def test_the_machine_is_named_by_threads_and_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert hardware_in_words().startswith("1 thread on 6 CPU cores (")
    assert hardware_in_words().endswith(") with AMX, no GPU")


@pytest.mark.parametrize(
    ("amx", "avx512", "fast"), [(True, False, True), (False, True, True), (False, False, False), (None, None, False)]
)
def test_bf16_is_fast_where_one_of_two_instruction_sets_is(monkeypatch, amx, avx512, fast):
    for name, answer in ((AMX, amx), (AVX512, avx512)):
        if answer is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert cpu_has_fast_bf16() is fast
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)
