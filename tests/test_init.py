"""``fedsim init`` as a new user types it: what it writes runs as it is, and what it cannot know is one sentence."""

import csv
import json
import shlex

import pytest

from fedsim.configuration.schema import read_config
from fedsim.data.sources import load_dataset

GOOD, BAD = ["great", "lovely", "friendly", "fresh"], ["rude", "cold", "slow", "dirty"]


@pytest.fixture
def reviews(tmp_path):
    """A CSV of one's own: quotes, commas, a row without text, and customers who differ."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["no", "customer_id", "feedback", "sentiment"])
        for n in range(120):
            good = (n * 7) % 5 > n % 3
            words = (GOOD if good else BAD)[n % 4], (GOOD if good else BAD)[(n // 4) % 4]
            text = f'The room was {words[0]}, and the "staff" was {words[1]} {n}.' if n != 5 else ""
            writer.writerow([n, f"c{n % 8}", text, "positive" if good else "negative"])
    return path


def test_what_it_writes_runs_as_it_is(fedsim, reviews, tmp_path):
    status, out, err = fedsim("init", "--data", "reviews.csv")
    assert (status, err) == (0, "")
    assert "left out" in out and "reviews.csv:7: field 'text'" in " ".join(out.split())
    assert "customer_id" in out and "8 clients with 15.0 rows each" in out
    assert "wrote reviews.yaml" in out and "next: fedsim run reviews.yaml" in out
    config = read_config(tmp_path / "reviews.yaml")
    assert (config.partition.kind, config.partition.column) == ("by_column", "customer_id")
    assert (config.data.task.labels, config.data.task.label_words) == (("negative", "positive"), ("terrible", "great"))
    status, out, _ = fedsim("run", "reviews.yaml", "executor=local", "rounds=2", "tracking.plots=false")
    assert status == 0 and "clients                      8" in out
    assert "fedsim export runs/reviews --to peft" in out.partition("next: ")[2]
    assert (tmp_path / "runs/reviews/prompt/global.safetensors").is_file()


def test_a_file_in_place_of_the_folder_is_the_data(fedsim, reviews, tmp_path):
    assert fedsim("init", "reviews.csv")[0] == 0
    assert read_config(tmp_path / "reviews.yaml").partition.column == "customer_id"


def test_it_overwrites_only_what_it_may(fedsim, reviews, tmp_path):
    kept = tmp_path / "reviews.yaml"
    kept.write_text("rounds: 1")
    status, _, err = fedsim("init", "--data", "reviews.csv")
    assert (status, err) == (2, "error: reviews.yaml exists; give --force to overwrite it, or another folder\n")
    assert kept.read_text() == "rounds: 1"
    assert fedsim("init", "--data", "reviews.csv", "--client", "none", "--force")[0] == 0
    assert read_config(kept).partition.kind == "dirichlet_label"


def test_a_config_elsewhere_finds_the_data(fedsim, reviews, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert fedsim("init", "mine", "--data", "../reviews.csv", "--label", "sentiment", "--text", "feedback")[0] == 0
    config = read_config(tmp_path / "work/mine/reviews.yaml")
    assert len(load_dataset(config.data, 0, config.partition.column).validation) == 24


def test_a_file_without_header_is_read_by_numbers(fedsim, reviews, tmp_path):
    (tmp_path / "rows.csv").write_text(reviews.read_text().partition("\n")[2])
    assert (
        "1 (such as 'c0') and 3 (such as 'negative') may each be the label" in fedsim("init", "--data", "rows.csv")[2]
    )
    assert fedsim("init", "--data", "rows.csv", "--client", "1")[0] == 0
    config = read_config(tmp_path / "rows.yaml")
    assert (config.data.header, config.data.columns, config.partition.column) == (False, {"text": 2, "label": 3}, "1")


def test_labels_that_say_nothing_get_a_classifier_and_a_validation_file_is_used(fedsim, tmp_path):
    for name, rows in (("train", 60), ("validation", 20)):
        lines = (f"the {GOOD[n % 4]} soup number {n},{n % 2}\n" for n in range(rows))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    status, out, _ = fedsim("init", "--data", "train.csv")
    assert status == 0 and "note: model.head.kind is classifier: no word of one token" in out
    config = read_config(tmp_path / f"{tmp_path.name}.yaml")  # not train.yaml, which says nothing
    assert (config.model.head.kind, config.data.holdout) == ("classifier", None)
    assert len(load_dataset(config.data, 0).validation) == 20


def test_names_that_yaml_has_no_place_for_end_up_in_no_comment(fedsim, reviews, tmp_path):
    odd = tmp_path / "a\n'b: #\x07.csv"
    odd.write_text(reviews.read_text().replace("feedback", "the: #text\x07"))
    status, _, err = fedsim("init", "--data", odd)
    assert (status, err) == (0, "")
    (written,) = tmp_path.glob("*.yaml")
    assert read_config(written).data.columns["text"] == "the: #text\x07"


def test_the_commands_in_its_head_can_be_copied_whatever_the_file_is_called(fedsim, reviews, tmp_path):
    (tmp_path / "my reviews.csv").write_bytes(reviews.read_bytes())
    assert fedsim("init", "my reviews.csv")[0] == 0
    lines = (tmp_path / "my reviews.yaml").read_text().splitlines()
    words = [shlex.split(line[1:]) for line in lines if line.startswith("#   fedsim")]
    assert [each[:3] for each in words] == [
        ["fedsim", name, "my reviews.yaml"] for name in ("config", "partition", "run")
    ]


def test_without_data_the_quickstart_is_there_to_edit(fedsim, tmp_path):
    assert fedsim("init", "new folder")[0] == 0
    assert read_config(tmp_path / "new folder/quickstart.yaml") == read_config("quickstart")
    status, _, err = fedsim("init", "--label", "x")
    assert status == 2 and "name these, too: fedsim init FILE" in err


def test_presets_are_listed_and_printed(fedsim):
    status, out, _ = fedsim("presets")
    assert status == 0 and "methods/fedit" in out and "fedsim compare NAME" in out
    assert fedsim("presets", "quickstart")[1] == read_text("quickstart")
    assert "did you mean 'quickstart'" in fedsim("presets", "quickstrat")[2]


def read_text(name):
    from fedsim.configuration.presets import located

    return located(name).read_text()


@pytest.mark.parametrize("name", ["nofile.csv", "sub/nofile.jsonl.gz", "book.xlsx"])
def test_a_file_that_is_not_there_makes_no_folder_called_like_it(fedsim, tmp_path, name):
    status, _, err = fedsim("init", name)
    assert status == 2 and f"{name} does not exist" in err
    assert not (tmp_path / name).exists()


def test_data_named_twice_are_one_sentence(fedsim, reviews):
    status, _, err = fedsim("init", "reviews.csv", "--data", "reviews.csv")
    assert status == 2 and "FOLDER: reviews.csv is a file" in err


def test_a_spreadsheet_is_told_to_be_saved_as_csv(fedsim, tmp_path):
    (tmp_path / "book.xlsx").write_bytes(b"PK\3\4")
    status, _, err = fedsim("init", "book.xlsx")
    assert status == 2 and "book.xlsx is a spreadsheet, which is not read; save its sheet as CSV" in err


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (lambda n: 1, "label has 1 different value in 60 rows; name the label"),
        (lambda n: n / 7, "label has 60 different values in 60 rows; name the label"),
        (lambda n: ["a", "b"], "label is of type list; name the label"),
        (None, "has no label, a column with 2 to 20 values that come again, beside its text; name the label"),
    ],
)
def test_data_without_a_label_say_what_stands_there_instead(fedsim, tmp_path, label, sentence):
    rows = [{"text": f"a film of kind {n}"} | ({} if label is None else {"label": label(n)}) for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = fedsim("init", "mine.jsonl")
    assert status == 2 and sentence in err


def test_options_that_are_offered_can_be_copied(fedsim, tmp_path):
    rows = [(f"a film of kind {n}", ("gut", "schlecht")[n % 2], ("Nord", "Süd")[n // 2 % 2]) for n in range(60)]
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("📝 Text", "Gefühl 😊", "my place"), *rows])
    status, _, err = fedsim("init", "mine.csv")
    assert status == 2 and "choose with --label 'Gefühl 😊' or --label 'my place'" in err
    offered = shlex.split(err[err.index("--label") :].partition(" or ")[0])
    status, out, err = fedsim("init", "mine.csv", *offered)
    assert (status, err) == (0, "") and "give --client 'my place' (2)" in out
    assert read_config(tmp_path / "mine.yaml").data.columns == {"text": "📝 Text", "label": "Gefühl 😊"}


def test_a_run_says_which_rows_it_leaves_out(fedsim, reviews):
    assert fedsim("init", "reviews.csv")[0] == 0
    status, out, _ = fedsim("run", "reviews.yaml", "rounds=1", "executor=local")
    assert status == 0 and "data: 1 row is left out (data.on_bad_row=skip; empty text: 1); the first is " in out
    assert "reviews.csv:7: field 'text'" in " ".join(out.split())


def test_row_numbers_as_pandas_writes_them_leave_the_header_a_header(fedsim, tmp_path):
    rows = [(n, f"a film of kind {n}", n % 2) for n in range(40)]
    with (tmp_path / "frame.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("", "text", "label"), *rows])
    status, out, err = fedsim("init", "frame.csv")
    assert (status, err) == (0, "") and "frame.csv: 40 rows" in out
    data = load_dataset(read_config(tmp_path / "frame.yaml").data, 0)
    assert (data.task.labels, len(data.train) + len(data.validation)) == (("0", "1"), 40)


def test_what_would_help_is_not_said_of_rows_that_are_left_out(fedsim, tmp_path):
    rows = [(f"a film of kind {n}", ("no", "yes", "")[n % 3]) for n in range(90)]
    with (tmp_path / "holes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    status, out, err = fedsim("init", "holes.csv")
    assert (status, err) == (0, "") and "unknown label ''" in out and "data.on_bad_row" not in out
