"""Rows from JSON lines, from real datasets on disk, from dataset objects and from lists; and what is refused."""

import json
import sys

import datasets
import huggingface_hub
import pytest

from latentknobs.data.tables import read_jsonl, read_rows
from latentknobs.errors import DataError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}, {"prompt": "three", "answer": 3}]
TEST = [{"prompt": "four", "answer": 4}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def saved(tmp_path):
    """A folder of `save_to_disk` with two splits."""
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(TEST)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def folder(tmp_path):
    """A folder of data files, one for each split."""
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "folder" / "train.jsonl", ROWS)
    lines(tmp_path / "folder" / "test.jsonl", TEST)
    return tmp_path / "folder"


class TestJsonLines:
    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ('{"prompt": "a"}\n{"prompt": \n', "Line 2 .* is not JSON"),
            ('{"prompt": "a"}\n\n{"text": "a"}\n', "Line 3 .* has no `prompt`.*other columns reach the reward"),
            ('["a"]\n', "Line 1 .* has no `prompt`"),
            ("\n", "The prompts file .* is empty"),
            ('{"prompt": "a"}\n' + "[" * 100_000, r"Line 2 .* is not JSON \(it is nested more than 32 levels deep\)"),
            ('{"prompt": ' + "9" * 5_000 + "}", "Line 1 .* is not JSON .*4300 digits"),
        ],
    )
    def test_a_malformed_file_names_the_line(self, tmp_path, content, told):
        (tmp_path / "p.jsonl").write_text(content)
        with pytest.raises(DataError, match=told) as caught:
            read_rows(tmp_path / "p.jsonl")
        assert len(str(caught.value)) < 500

    def test_no_more_of_a_line_is_read_than_one_may_hold(self, monkeypatch):
        monkeypatch.setattr("latentknobs.data.tables.LONGEST", 1000)
        with pytest.raises(
            DataError, match="The prompts file '/dev/zero' cannot be read: line 1 is longer than 1,000 characters"
        ):
            read_rows("/dev/zero")

    def test_a_tilde_is_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        lines(tmp_path / "p.jsonl", ROWS)
        assert read_rows("~/p.jsonl") == read_rows("dataset:~/p.jsonl") == ROWS

    def test_line_separators_inside_a_text_and_a_byte_order_mark_are_no_trouble(self, tmp_path):
        file = tmp_path / "p.jsonl"
        file.write_text("\ufeff" + json.dumps({"prompt": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
        assert read_jsonl(file) == [{"prompt": "one\u2028two"}]

    def test_a_missing_file_is_named_and_datasets_are_suggested(self, tmp_path):
        with pytest.raises(DataError, match=r"The prompts file .*nowhere\.jsonl.*cannot be read.*dataset:NAME"):
            read_rows(str(tmp_path / "nowhere.jsonl"))

    def test_other_rows_need_other_columns(self, tmp_path):
        file = lines(tmp_path / "p.jsonl", [{"chosen": "a", "rejected": "b"}, {"chosen": "a"}])
        with pytest.raises(DataError, match=r"Line 2 .* has no `rejected`.*\"prompt\": \.\.\., \"chosen\""):
            read_rows(file, ("chosen", "rejected"), "preferences")


class TestNamedDatasets:
    @pytest.mark.parametrize("kind", ["saved", "folder"])
    def test_a_folder_gives_its_train_split_unless_another_is_asked_for(self, kind, request):
        path = request.getfixturevalue(kind)
        assert read_rows(f"dataset:{path}") == ROWS
        assert read_rows(f"dataset:{path}:test") == TEST

    def test_a_saved_dataset_may_have_no_splits(self, tmp_path):
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        assert read_rows(f"dataset:{tmp_path / 'one'}") == ROWS
        with pytest.raises(DataError, match="has no splits, so not 'train' either"):
            read_rows(f"dataset:{tmp_path / 'one'}:train")

    @pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
    def test_a_file_is_read_by_its_ending(self, tmp_path, ending):
        file = tmp_path / f"rows.{ending}"
        {"csv": datasets.Dataset.to_csv, "parquet": datasets.Dataset.to_parquet}.get(ending, datasets.Dataset.to_json)(
            datasets.Dataset.from_list(ROWS), file
        )
        assert read_rows(f"dataset:{file}") == ROWS

    def test_a_slice_of_a_split(self, folder):
        assert read_rows(f"dataset:{folder}:train[1:2]") == ROWS[1:2]

    def test_a_configuration_of_a_folder(self, tmp_path):
        for name in ("easy", "hard"):
            (tmp_path / name).mkdir()
            lines(tmp_path / name / "rows.jsonl", [{"prompt": name}])
        configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("easy", "hard"))
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert read_rows(f"dataset:{tmp_path}:hard:train") == [{"prompt": "hard"}]
        with pytest.raises(DataError, match=r"easy.*hard.*dataset:NAME:CONFIG:SPLIT"):
            read_rows(f"dataset:{tmp_path}")

    @pytest.mark.parametrize("kind", ["saved", "folder"])
    def test_a_wrong_split_names_the_splits(self, kind, request):
        with pytest.raises(DataError, match=r"tset(?s:.*)train.*test|tset(?s:.*)test.*train"):
            read_rows(f"dataset:{request.getfixturevalue(kind)}:tset")

    def test_a_missing_column_names_the_columns(self, tmp_path):
        file = lines(tmp_path / "q.jsonl", [{"question": "1 + 1", "answer": "2"}])
        with pytest.raises(DataError, match=r"no column `prompt`; its columns are: question, answer\. Rename one"):
            read_rows(f"dataset:{file}")

    def test_what_is_not_there_is_said_without_asking_the_hub(self, tmp_path):
        with pytest.raises(DataError, match=r"There is no dataset at '.*nothing'\. Give a folder"):
            read_rows(f"dataset:{tmp_path / 'nothing'}")

    def test_a_hub_that_cannot_be_reached_is_told(self, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"'nobody/nothing' cannot be loaded with split 'test': Couldn't reach .* Write"):
            read_rows("dataset:nobody/nothing:test")

    def test_a_malformed_file_says_what_is_wrong_in_it(self, tmp_path):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
        with pytest.raises(DataError, match=r"cannot be loaded.*JSON parse error"):
            read_rows(f"dataset:{tmp_path / 'bad.jsonl'}")

    def test_a_file_of_another_kind_and_an_empty_folder_are_refused(self, tmp_path):
        (tmp_path / "rows.pkl").write_bytes(b"\x80\x04N.")
        with pytest.raises(DataError, match=r"does not end in one of \.json, \.jsonl, \.csv, \.parquet"):
            read_rows(f"dataset:{tmp_path / 'rows.pkl'}")
        with pytest.raises(DataError, match="No \\(supported\\) data files"):  # a pickle is never unpacked
            read_rows(f"dataset:{tmp_path}")

    @pytest.mark.parametrize("source", ["dataset:", "dataset::train", "dataset:a:b:c:d"])
    def test_a_name_that_is_none_shows_the_form(self, source):
        with pytest.raises(DataError, match=r"is not a dataset\. Write dataset:NAME, dataset:NAME:SPLIT"):
            read_rows(source)

    def test_without_the_package_the_extra_is_named(self, saved, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
        with pytest.raises(DataError, match=r"pip install latentknobs\[datasets\]"):
            read_rows(f"dataset:{saved}")

    def test_progress_bars_of_the_library_stay_as_they_were(self, folder, capfd):
        assert not datasets.utils.are_progress_bars_disabled()
        read_rows(f"dataset:{folder}")
        assert not datasets.utils.are_progress_bars_disabled() and capfd.readouterr().err == ""


class TestObjects:
    def test_a_dataset_object_gives_its_rows(self):
        assert read_rows(datasets.Dataset.from_list(ROWS)) == ROWS
        assert read_rows(datasets.Dataset.from_list(ROWS).to_iterable_dataset()) == ROWS

    def test_lists_and_generators_are_taken_as_they_are(self):
        assert read_rows(["a", {"prompt": "b"}]) == ["a", {"prompt": "b"}]
        assert read_rows(f"p{n}" for n in range(2)) == ["p0", "p1"]

    def test_splits_in_place_of_rows_are_refused(self):
        both = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(TEST)})
        with pytest.raises(DataError, match=r"mapping with the keys train, test, not rows\. Pass one split"):
            read_rows(both)

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            (3, "The prompts are 3"),
            (datasets.Dataset.from_list([{"text": "a"}]), "has no column `prompt`; its columns are: text"),
            (datasets.Dataset.from_list(ROWS).select([]), "has no rows"),
        ],
    )
    def test_what_is_no_table_of_prompts_is_refused(self, source, told):
        with pytest.raises(DataError, match=told):
            read_rows(source)
