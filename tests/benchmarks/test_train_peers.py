"""`make bench BENCH=train` beside other code: it ends at once where that code is missing, or has no such setting."""

import pytest

from tests.benchmarks import train


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--dinov2={folder}", "--dinov2 {folder}: there is no dinov2/layers/dino_head.py; give a clone of github.com/"),
        ("--dinov3={folder}", "--dinov3 {folder}: there is no dinov3/layers/dino_head.py; give a clone of github.com/"),
        ("--dinov2={folder} --set backbone.registers=4", "--set backbone.registers=4: this does not reach their code"),
        ("--dinov2={folder} --only debug", "--only: beside other code there is one recipe"),
    ],
)
def test_a_folder_or_a_setting_that_is_of_no_use_is_refused_in_one_line(tmp_path, monkeypatch, words, says):
    monkeypatch.setattr("sys.argv", ["train", *words.format(folder=tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        train.main()
    said = str(ended.value)
    assert said.startswith(says.format(folder=tmp_path))
    assert "\n" not in said
