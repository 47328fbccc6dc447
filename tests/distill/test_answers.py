"""A file of answers is read whole or computed anew: kills, broken bytes, two writers, other teachers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from kdc.core.errors import FolderError, ModelError
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.answers import CHECKSUM, AnswerFile, Answers, Header, Source, created, opened
from kdc.distill.forms import decode, encode, row_bytes

SOURCE = Source(teacher="a" * 64, data="b" * 64, seed=0, view="0", form=AnswerForm(kind="exact"))
HEADER = Header(source=SOURCE, samples=23, shape=(5,), block=10)
OUTPUTS = torch.randn((23, 5), generator=torch.Generator().manual_seed(0))


def rows_of(header: Header, block: int) -> np.ndarray:
    outputs = OUTPUTS[header.rows_of(block)]
    return encode(outputs, header.form, torch.Generator().manual_seed(block))


def written(folder: Path, blocks: tuple[int, ...] = (0, 1, 2), header: Header = HEADER) -> Path:
    file = created(folder / header.source.name(), header, folder / "lock")
    for block in blocks:
        file.write(block, rows_of(header, block))
    file.close()
    return file.path


def found(path: Path, source: Source = SOURCE) -> AnswerFile | None:
    return opened(path, source, path.parent / "lock")


def test_rows_come_back_to_the_bit_in_any_order(tmp_path):
    file = found(written(tmp_path))
    assert file.missing() == []
    index = torch.tensor([22, 0, 7, 7, 15])
    assert torch.equal(Answers(file.header, file.rows)[index], OUTPUTS[index])


def test_answers_are_the_callers_own(tmp_path):
    file = found(written(tmp_path))
    answers = Answers(file.header, file.rows)
    answers[torch.arange(5)].zero_()
    assert torch.equal(answers[torch.arange(5)], OUTPUTS[:5])


def test_the_size_on_disk_is_as_computed(tmp_path):
    path = written(tmp_path)
    assert path.stat().st_size == HEADER.size == 2 * 4096 + 23 * 5 * 4


def test_a_file_goes_on_from_its_whole_blocks(tmp_path):
    path = written(tmp_path, (0, 2))
    file = found(path)
    assert file.missing() == [1]
    file.write(1, rows_of(HEADER, 1))
    assert file.missing() == []
    assert torch.equal(Answers(file.header, file.rows)[torch.arange(23)], OUTPUTS)


def test_a_kill_after_any_byte_leaves_no_block_that_is_half_there(tmp_path, monkeypatch):
    """Every prefix of the bytes that a block's writing puts down: the block is whole, or it is missing."""
    path = written(tmp_path, (0,))
    before = path.read_bytes()
    puts: list[tuple[int, bytes]] = []
    real = os.pwrite

    def watched(descriptor: int, content: memoryview, offset: int) -> int:
        puts.append((offset, bytes(content)))
        return real(descriptor, content, offset)

    file = found(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", watched)
        file.write(1, rows_of(HEADER, 1))
    file.close()
    total = sum(len(content) for _, content in puts)
    assert total == 10 * 5 * 4 + CHECKSUM
    for kept in range(total + 1):
        torn, left = bytearray(before), kept
        for offset, content in puts:
            torn[offset : offset + min(left, len(content))] = content[:left]
            left -= min(left, len(content))
        path.write_bytes(torn)
        file = found(path)
        assert file.missing() == ([1, 2] if kept < total else [2]), kept
        file.close()


def test_a_process_killed_while_writing_leaves_whole_blocks_and_none_that_are_wrong(tmp_path):
    code = textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_answers as t
        from pathlib import Path
        file = t.created(Path({str(tmp_path)!r}) / t.SOURCE.name(), t.HEADER, Path({str(tmp_path)!r}) / "lock")
        file.write(0, t.rows_of(t.HEADER, 0))
        real, count = os.pwrite, 0
        def dies(descriptor, content, offset):
            real(descriptor, bytes(content)[: len(content) // 2], offset)
            os.kill(os.getpid(), 9)
        os.pwrite = dies
        file.write(1, t.rows_of(t.HEADER, 1))
    """)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    file = found(tmp_path / SOURCE.name())
    assert file.missing() == [1, 2]


@pytest.mark.parametrize("place", ["row", "checksum"])
def test_a_broken_block_is_computed_anew_and_not_served(tmp_path, place):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    at = HEADER.rows_at + 12 * 20 if place == "row" else HEADER.checksums_at + CHECKSUM
    content[at] ^= 1
    path.write_bytes(content)
    assert found(path).missing() == [1]


def test_a_block_of_another_place_or_file_does_not_pass(tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    rows, sums = HEADER.rows_at, HEADER.checksums_at
    content[rows : rows + 200] = content[rows + 200 : rows + 400]
    content[sums : sums + CHECKSUM] = content[sums + CHECKSUM : sums + 2 * CHECKSUM]
    path.write_bytes(content)
    assert found(path).missing() == [0]
    other = SOURCE.model_copy(update={"seed": 1})
    header = HEADER.model_copy(update={"source": other})
    second = written(tmp_path, (), header)
    second.write_bytes(second.read_bytes()[:sums] + content[sums:])
    assert found(second, other).missing() == [0, 1, 2]


@pytest.mark.parametrize("cut", [0, 5, 11, 100, 4096, 8500])
def test_a_file_that_was_cut_off_is_taken_away(tmp_path, cut):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    assert found(path) is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"teacher": "c" * 64}, "another teacher: found cccc"), ({"data": "d" * 64}, "another data"), ({"view": "1"}, "view"),
     ({"seed": 1}, "seed"), ({"form": AnswerForm(kind="half")}, "another form")],
)  # fmt: skip
def test_answers_of_another_source_are_refused(tmp_path, changed, said):
    other = SOURCE.model_copy(update=changed)
    path = written(tmp_path, (0,), HEADER.model_copy(update={"source": other}))
    mine = path.rename(tmp_path / SOURCE.name())
    with pytest.raises(FolderError, match=said) as raised:
        found(mine)
    assert "expected" in str(raised.value)
    assert "→" in str(raised.value)
    assert mine.exists()


def test_a_block_that_is_there_is_never_written_again(tmp_path):
    path = written(tmp_path, (0,))
    file = found(path)
    file.write(0, np.zeros_like(rows_of(HEADER, 0)))
    assert torch.equal(Answers(file.header, file.rows)[torch.arange(10)], OUTPUTS[:10])


def test_two_processes_that_write_one_file_at_once_leave_it_whole(tmp_path):
    """Each would write other values: every block is then one's or the other's, never a mixture."""
    header = Header(source=SOURCE, samples=400, shape=(500,), block=10)
    created(tmp_path / SOURCE.name(), header, tmp_path / "lock").close()
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        from kdc.distill.answers import opened, Source
        path, value = Path(sys.argv[1]), float(sys.argv[2])
        source = Source.model_validate_json(sys.argv[3])
        file = opened(path, source, path.parent / "lock")
        print("ready", flush=True)
        sys.stdin.readline()
        for block in range(40):
            file.write(block, np.full((10, 500), value, np.float32).view(np.uint8))
    """)
    command = [sys.executable, "-c", code, str(tmp_path / SOURCE.name())]
    both = [
        subprocess.Popen([*command, value, SOURCE.model_dump_json()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for value in ("1", "2")
    ]
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
        process.stdin.close()
        process.stdout.close()
    file = found(tmp_path / SOURCE.name())
    assert file.missing() == []
    values = Answers(header, file.rows)[torch.arange(400)].reshape(40, -1)
    assert ((values == values[:, :1]).all(1) & ((values[:, 0] == 1) | (values[:, 0] == 2))).all()


def test_half_rows_are_float16_of_the_outputs():
    form = AnswerForm(kind="half")
    rows = encode(OUTPUTS, form, torch.Generator())
    assert rows.shape == (23, row_bytes(form, (5,))) == (23, 10)
    assert torch.equal(decode(rows, form, (5,)), OUTPUTS.half().float())


def test_outputs_that_float16_cannot_hold_are_refused():
    with pytest.raises(ModelError, match=r"1e\+05.*65504"):
        encode(torch.full((2, 3), 1e5), AnswerForm(kind="half"), torch.Generator())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_answers_that_are_not_finite_are_refused(value):
    outputs = OUTPUTS.clone()
    outputs[3, 1] = value
    with pytest.raises(ModelError, match="1 of 23 samples, the first number 253 of"):
        encode(outputs, AnswerForm(kind="exact"), torch.Generator(), first=250)


def test_outputs_of_more_dimensions_keep_their_shape():
    outputs = torch.randn((4, 3, 2, 5), generator=torch.Generator().manual_seed(1))
    form = AnswerForm(kind="exact")
    assert torch.equal(decode(encode(outputs, form, torch.Generator()), form, (3, 2, 5)), outputs)
