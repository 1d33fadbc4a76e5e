"""The formats of published sets, in small files written for these tests, and what is wrong with a file in words."""

import io
import json
import tarfile

import numpy as np
import pytest

from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.tasks.kinds import tag_classes
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import load_split

SQUAD = {
  "data": [
    {
      "title": "猫",
      "paragraphs": [
        {
          "context": "猫今年三岁，狗今年三岁。",
          "qas": [
            {"id": "Q1", "question": "猫几岁？", "answers": [{"text": "三岁", "answer_start": 3}]},
            {"id": "Q2", "question": "狗几岁？", "answers": [{"text": "三岁", "answer_start": 8}]},
            {"id": "Q3", "question": "鸟呢？", "answers": [], "is_impossible": "true"},
          ],
        }
      ],
    }
  ]
}
C3 = [
  [["男：吃什么？", "女：面。"], [{"question": "吃什么？", "choice": ["饭", "面"], "answer": "面"}], "1-1"],
  [["天晴了。"], [{"question": "天怎么了？", "choice": ["晴", "雨", "雪"], "answer": "晴"}], "1-2"],
]


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())


def lines(*rows) -> str:
  return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def examples(name, split, data_dir):
  return load_split(known_tasks()[name], split, data_dir).examples


def test_squad(tmp_path):
  write(tmp_path / "drcd" / "DRCD_training.json", SQUAD)
  write(tmp_path / "cjrc" / "big_train_data.json", SQUAD)
  context = SQUAD["data"][0]["paragraphs"][0]["context"]
  for name in ("drcd", "cjrc"):
    assert examples(name, "train", tmp_path) == [
      {"id": 0, "text": context, "question": "猫几岁？", "answers": ["三岁"], "starts": [3]},
      # The row's place is not where it stands: the nearest one is.
      {"id": 1, "text": context, "question": "狗几岁？", "answers": ["三岁"], "starts": [9]},
      {"id": 2, "text": context, "question": "鸟呢？", "answers": [""], "starts": [-1]},
    ]
    assert load_split(known_tasks()[name], "train", tmp_path).fields[1]["id"] == "Q2"


def test_hidden_answers_are_left_out(tmp_path):
  hidden = json.loads(json.dumps(SQUAD))
  hidden["data"][0]["paragraphs"][0]["qas"] = [
    {"id": "Q1", "question": "猫几岁？", "answers": [{"text": "FAKE_ANSWER_1", "answer_start": -1}]}
  ]
  for name in ("test", "dev"):
    write(tmp_path / "cmrc2018" / f"{name}.json", hidden)
  assert examples("cmrc2018", "test", tmp_path)[0]["answers"] == []
  # Elsewhere yes and no are answers that do not stand in the passage.
  assert examples("cmrc2018", "validation", tmp_path)[0]["starts"] == [-1]
  hidden["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "YES"
  write(tmp_path / "cjrc" / "test.json", hidden)
  assert examples("cjrc", "test", tmp_path)[0]["answers"] == ["YES"]


def test_c3_joins_dialogues_and_texts(tmp_path):
  write(tmp_path / "c3" / "d-train.json", C3[:1])
  write(tmp_path / "c3" / "m-train.json", C3[1:])
  assert examples("c3", "train", tmp_path) == [
    {"id": 0, "text": "男：吃什么？\n女：面。", "question": "吃什么？", "options": ["饭", "面"], "label": 1},
    {"id": 1, "text": "天晴了。", "question": "天怎么了？", "options": ["晴", "雨", "雪"], "label": 0},
  ]


def test_chid_has_an_example_for_every_blank(tmp_path):
  row = {"candidates": ["一心一意", "三心二意"], "content": ["他#idiom000001#地走，从不#idiom000002#。", "没有空"]}
  write(tmp_path / "chid" / "train.json", lines(row))
  write(tmp_path / "chid" / "train_answer.json", {"#idiom000001#": 0, "#idiom000002#": 1})
  write(tmp_path / "chid" / "test1.1.json", lines(row))
  found = examples("chid", "train", tmp_path)
  assert [(row["question"], row["label"]) for row in found] == [("#idiom000001#", 0), ("#idiom000002#", 1)]
  assert {each["text"] for each in found} == {row["content"][0]}
  assert {each["id"] for each in found} == {0, 1}
  assert [row["label"] for row in examples("chid", "test", tmp_path)] == [-1, -1]
  few = {"id": 5, "candidates": ["一心一意", "三心二意"], "content": "他#idiom#地走。", "answer": 1}
  write(tmp_path / "fewclue" / "chid" / "train_3.json", lines(few))
  assert examples("chidf", "train_3", tmp_path) == [
    {"id": 5, "text": "他#idiom#地走。", "question": "#idiom#", "options": ["一心一意", "三心二意"], "label": 1}
  ]


def test_wsc_marks_both_spans(tmp_path):
  target = {"span1_index": 0, "span1_text": "小猫", "span2_index": 5, "span2_text": "它"}
  before = {"span1_index": 3, "span1_text": "小猫", "span2_index": 0, "span2_text": "它"}
  rows = [{"text": "小猫饿了，它叫", "target": target, "label": "true"}]
  rows += [{"text": "它说，小猫饿了", "target": before, "label": "false"}]
  write(tmp_path / "cluewsc2020" / "train.json", lines(*rows))
  assert [(row["text"], row["label"]) for row in examples("cluewsc2020", "train", tmp_path)] == [
    ("_小猫_饿了，[它]叫", 1), ("[它]说，_小猫_饿了", 0)
  ]


@pytest.mark.parametrize(
  ("path", "content"),
  [
    ("weibo_ner/train.conll", "小 B-PER.NAM\n明 I-PER.NAM\n来 O\n\n-DOCSTART- O\n\n他 B-PER.NOM\n"),
    ("weibo_ner/train.char.bmes", "小\tB-PER.NAM\n明\tE-PER.NAM\n来\tO\n\n他\tS-PER.NOM\n"),
    ("weibo_ner/weiboNER_2nd_conll.train", "小0\tB-PER.NAM\n明1\tI-PER.NAM\n来0\tO\n\n他0\tB-PER.NOM\n\n"),
    ("weibo_ner/train.tsv", "text_a\tlabel\n小 明 来\tB-PER.NAM I-PER.NAM O\n他\tB-PER.NOM\n"),
  ],
)
def test_forms_of_tags(tmp_path, path, content):
  write(tmp_path / path, content)
  assert examples("weibo", "train", tmp_path) == [
    {"id": 0, "text": "小明来", "entity_labels": [0], "entity_starts": [0], "entity_ends": [2]},
    {"id": 1, "text": "他", "entity_labels": [1], "entity_starts": [0], "entity_ends": [1]},
  ]


def test_cluener_ends_are_inclusive(tmp_path):
  row = {"text": "小明在京城的公司", "label": {"name": {"小明": [[0, 1]]}, "address": {"京城": [[3, 4]]}}}
  write(tmp_path / "cluener" / "train.json", lines(row))
  assert examples("cluener", "train", tmp_path) == [
    {"id": 0, "text": row["text"], "entity_labels": [6, 0], "entity_starts": [0, 3], "entity_ends": [2, 5]}
  ]


@pytest.mark.parametrize(
  ("path", "content"),
  [
    ("lcqmc/train.tsv", "几点\t现在几点\t1\n"),
    ("lcqmc/train.txt", "几点\t现在几点\t1\n"),
    ("lcqmc/train.tsv", "label\ttext_a\ttext_b\n1\t几点\t现在几点\n"),
    ("lcqmc/train.tsv", "text_a\ttext_b\tlabel\n几点\t现在几点\t1\n"),
    ("lcqmc/train.json", lines({"sentence1": "几点", "sentence2": "现在几点", "label": 1})),
    ("paws-x/translated_train.tsv", "id\tsentence1\tsentence2\tlabel\n0\t几点\t现在几点\t1\n"),
  ],
)
def test_forms_of_pairs(tmp_path, path, content):
  write(tmp_path / path, content)
  name = "lcqmc" if path.startswith("lcqmc") else "paws_x"
  assert examples(name, "train", tmp_path) == [{"id": 0, "text": "几点", "text_pair": "现在几点", "label": 1}]


def test_xnli_takes_the_chinese_rows_and_both_names_of_a_label(tmp_path):
  write(tmp_path / "xnli" / "multinli.train.zh.tsv", "premise\thypo\tlabel\n天晴\t下雨\tcontradictory\n")
  header = "language\tgold_label\tsentence1\tsentence2\n"
  write(tmp_path / "xnli" / "xnli.dev.tsv", header + "en\tneutral\ta\tb\nzh\tentailment\t天晴\t晴天\n")
  assert [row["label"] for row in examples("xnli", "train", tmp_path)] == [0]
  assert examples("xnli", "validation", tmp_path) == [{"id": 0, "text": "天晴", "text_pair": "晴天", "label": 2}]


def test_other_sets(tmp_path):
  write(tmp_path / "stsb_zh" / "train.tsv", "猫睡\t猫在睡\t4.5\n")
  write(tmp_path / "thucnews" / "cnews.train.txt", "体育\t昨晚的球赛\n")
  write(tmp_path / "qbqtc" / "train.json", lines({"id": 3, "query": "猫", "title": "养猫", "label": "2"}))
  write(tmp_path / "csl" / "dev.json", lines({"id": 1, "abst": "摘要", "keyword": ["一", "二"], "label": "1"}))
  assert examples("stsb", "train", tmp_path) == [{"id": 0, "text": "猫睡", "text_pair": "猫在睡", "score": 4.5}]
  assert examples("thucnews", "train", tmp_path) == [{"id": 0, "text": "昨晚的球赛", "label": 0}]
  assert examples("qbqtc", "train", tmp_path) == [{"id": 3, "text": "猫", "text_pair": "养猫", "label": 2}]
  assert examples("csl", "validation", tmp_path) == [{"id": 1, "text": "一 二", "text_pair": "摘要", "label": 1}]


def test_fewclue_lies_in_an_archive_above_and_zeroclue_stands_for_it(tmp_path):
  (tmp_path / "fewclue" / "bustm").mkdir(parents=True)
  rows = {"bustm": [{"id": 1, "sentence1": "几点", "sentence2": "现在几点", "label": "1"}], "ocnli": [{"id": 2}]}
  with tarfile.open(tmp_path / "fewclue" / "rest.tar.xz", "w:xz") as archive:
    for folder, content in rows.items():
      data = lines(*content).encode()
      member = tarfile.TarInfo(f"datasets/{folder}/train_4.json")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  assert examples("bustm", "train_4", tmp_path) == [{"id": 1, "text": "几点", "text_pair": "现在几点", "label": 1}]
  write(tmp_path / "zeroclue" / "eprstmt" / "dev.json", lines({"id": 0, "sentence": "好", "label": "Positive"}))
  assert [row["label"] for row in examples("eprstmt", "dev_0", tmp_path)] == [1]
  (tmp_path / "fewclue" / "rest.tar.xz").write_bytes(b"\xfd7zXZ nothing")
  with pytest.raises(UserError, match="rest.tar.xz is not a tar archive .* fetch it again"):
    examples("bustm", "train_0", tmp_path)


ASTRAY = {"span1_index": 1, "span1_text": "小", "span2_index": 0, "span2_text": "小"}
MISTAKES = [
  ("lcqmc", "train.tsv", "几点\t现在几点\t1\n几点\t1\n", "line 2: has 2 columns where there are .* 3; a tab inside"),
  ("lcqmc", "train.tsv", "几点\t现在\t几点\t1\n", "line 1: has 4 columns where there are"),
  ("lcqmc", "train.tsv", "几点\t\t1\n", "line 1: field 'sentence2' is empty; fill it in or take the row out"),
  ("lcqmc", "train.tsv", "几点\t现在几点\t3\n", "line 1: unknown label '3' .* the known labels are 0, 1"),
  ("lcqmc", "train.tsv", "几点\t现在几点\t1\n".encode("gb18030"), "not UTF-8 .* iconv -f GB18030 -t UTF-8"),
  ("stsb_zh", "train.tsv", "猫\t狗\t7\n", "line 1: the score must be from 0 to 5, not 7"),
  ("stsb_zh", "train.tsv", "猫\t狗\t高\n", "line 1: the score must be a number, not '高'"),
  ("weibo_ner", "train.conll", "小 B-PER.NAM\n明 I-XXX\n", "line 2: unknown tag 'I-XXX'; tags are O, or one of"),
  ("weibo_ner", "train.conll", "小 O\n明\n", "line 2: must be a token and its tag"),
  ("weibo_ner", "train.tsv", "text_a\tlabel\n小 明\tO\n", "line 2: has 2 tokens but 1 tags; give one for each"),
  ("cluener", "train.json", lines({"text": "小明", "label": {"name": {"小明": [[0, 2]]}}}),
   "line 1: '小明' does not stand at characters 0 to 2"),
  ("cluener", "train.json", lines({"text": "小明", "label": {"name": {"小红": [[0, 1]]}}}), "'小红' does not stand at"),
  ("cluener", "train.json", lines({"text": "小明", "label": {"animal": {}}}), "line 1: unknown label 'animal'"),
  ("drcd", "DRCD_training.json", "[]", "must be one JSON object with a list 'data'"),
  ("drcd", "DRCD_training.json", '{\n"data": [}', "line 2: not valid JSON"),
  ("c3", "d-train.json", [[["天晴"], [{"question": "？", "choice": ["晴"], "answer": "雨"}], "1"]],
   "document 0, question 0: the answer '雨' is none of the choices 晴"),
  ("cluewsc2020", "train.json", lines({"text": "小猫", "target": ASTRAY, "label": "true"}),
   "line 1: '小' does not stand at character 1 of the text; mend span1_index"),
  ("chid", "train.json", lines({"content": ["#idiom1#"], "candidates": ["一"]}), "has no answer for #idiom1#"),
]  # fmt: skip
NAMES = {"weibo_ner": "weibo", "stsb_zh": "stsb"}


@pytest.mark.parametrize(("folder", "filename", "content", "words"), MISTAKES)
def test_mistakes_name_the_file_and_what_to_do(tmp_path, folder, filename, content, words):
  write(tmp_path / folder / filename, content)
  write(tmp_path / "chid" / "train_answer.json", {})
  write(tmp_path / "c3" / "m-train.json", [])
  with pytest.raises(UserError, match=words) as raised:
    examples(NAMES.get(folder, folder), "train", tmp_path)
  assert filename in str(raised.value) or folder == "chid"


def test_two_rows_of_a_test_split_with_one_id(tmp_path):
  rows = [{"id": 1, "sentence1": "一", "sentence2": "二"}, {"id": 1, "sentence1": "三", "sentence2": "四"}]
  write(tmp_path / "afqmc" / "test.json", lines(*rows))
  with pytest.raises(UserError, match="line 2: has the id 1 of .*line 1; give every row of this split its own"):
    examples("afqmc", "test", tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  characters = sorted(set("猫今年三岁狗几吃什么面饭男女天晴了怎雨雪小明在京城的公司睡：？。，"))
  return bert_tokenizer_from_characters(characters, tmp_path_factory.mktemp("tokenizer"))


def rows_of(name, data_dir, tokenizer, length=None):
  import seqio

  from fsb_jax import tasks

  tasks.register(tokenizer, data_dir)
  lengths = {"input_ids": length} if length else None
  dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, "train", shuffle=False, num_epochs=1)
  return list(dataset.as_numpy_iterator())


def test_an_encoded_row_of_a_choice_is_one_option(tmp_path, tokenizer):
  write(tmp_path / "c3" / "d-train.json", C3[:1])
  write(tmp_path / "c3" / "m-train.json", C3[1:])
  rows = rows_of("c3", tmp_path, tokenizer)
  assert [(row["id"], row["option"], row["label"]) for row in rows] == [
    (0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 2, 0)
  ]
  expected = tokenizer("男：吃什么？\n女：面。", "吃什么？ 面")
  assert rows[1]["input_ids"].tolist() == expected["input_ids"]
  assert rows[1]["token_type_ids"].tolist() == expected["token_type_ids"]


def test_an_encoded_row_of_a_reading_is_one_window(tmp_path, tokenizer):
  write(tmp_path / "drcd" / "DRCD_training.json", SQUAD)
  rows = rows_of("drcd", tmp_path, tokenizer)
  assert [row["id"] for row in rows] == [0, 1, 2]
  for row, answer in zip(rows, ("三 岁", "三 岁", "[CLS]")):
    found = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
    assert tokenizer.decode(found) == answer
  assert rows[1]["start_positions"] - rows[0]["start_positions"] == 6
  # What stands nowhere is not to be found anywhere.
  nowhere = {"id": 0, "text": "猫今年三岁。", "question": "猫几岁？", "answers": ["两岁"], "starts": [-1]}
  for example in (nowhere, {**nowhere, "answers": [], "starts": []}):
    found = known_tasks()["drcd"].kind.encode(tokenizer, [example], (), None)
    assert (found["start_positions"], found["end_positions"]) == ([-100], [-100])
  # Cut into windows of which one holds each answer.
  cut = rows_of("drcd", tmp_path, tokenizer, 70)
  assert len(cut) == 3 and max(len(row["input_ids"]) for row in cut) <= 70


def test_encoded_tags_and_scores(tmp_path, tokenizer):
  row = {"text": "小明在京城的公司", "label": {"name": {"小明": [[0, 1]]}, "address": {"京城": [[3, 4]]}}}
  write(tmp_path / "cluener" / "train.json", lines(row))
  write(tmp_path / "stsb_zh" / "train.tsv", "猫睡\t猫在睡\t4.5\n")
  (found,) = rows_of("cluener", tmp_path, tokenizer)
  names = tag_classes(known_tasks()["cluener"].label_names)
  tags = ["O", "B-name", "I-name", "O", "B-address", "I-address", "O", "O", "O", "O"]
  assert [names[label] for label in found["labels"]] == tags
  assert tokenizer.decode(found["input_ids"][1:3]) == "小 明"
  (joint,) = rows_of("ner.cluener", tmp_path, tokenizer)
  from fsb_jax import tasks

  joint_names = tag_classes(tasks.info("ner").label_names)
  assert [joint_names[label] for label in joint["labels"]] == [tag.replace("-", "-cluener/") for tag in tags]
  # Those of a later member stand behind the others'.
  write(tmp_path / "weibo_ner" / "train.conll", "小 B-LOC.NAM\n明 I-LOC.NAM\n")
  (joint,) = rows_of("ner.weibo", tmp_path, tokenizer)
  assert [joint_names[label] for label in joint["labels"]] == ["O", "B-weibo/LOC.NAM", "I-weibo/LOC.NAM", "O"]
  (scored,) = rows_of("stsb", tmp_path, tokenizer)
  assert scored["score"] == np.float32(4.5)
  assert scored["input_ids"].tolist() == tokenizer("猫睡", "猫在睡")["input_ids"]
