"""The four CLUE classification tasks, read from the files that CLUE published.

Xu et al., "CLUE: A Chinese Language Understanding Evaluation Benchmark", COLING 2020;
https://github.com/CLUEbenchmark/CLUE.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from fsb_jax.errors import UserError
from fsb_jax.tasks.files import DataFile, Row, find, read_json_lines
from fsb_jax.tasks.text_task import Split, TextTask, make_split

_SPLITS = ("train", "validation", "test")

_TNEWS_LABELS = {
  "100": "news_story",
  "101": "news_culture",
  "102": "news_entertainment",
  "103": "news_sports",
  "104": "news_finance",
  "106": "news_house",
  "107": "news_car",
  "108": "news_edu",
  "109": "news_tech",
  "110": "news_military",
  "112": "news_travel",
  "113": "news_world",
  "114": "news_stock",
  "115": "news_agriculture",
  "116": "news_game",
}

_IFLYTEK_NAMES = (
  "打车", "地图导航", "免费WIFI", "租车", "同城服务", "快递物流", "婚庆", "家政", "公共交通", "政务", "社区服务",
  "薅羊毛", "魔幻", "仙侠", "卡牌", "飞行空战", "射击游戏", "休闲益智", "动作类", "体育竞技", "棋牌中心",
  "经营养成", "策略", "MOBA", "辅助工具", "约会社交", "即时通讯", "工作社交", "论坛圈子", "婚恋社交", "情侣社交",
  "社交工具", "生活社交", "微博博客", "新闻", "漫画", "小说", "技术", "教辅", "问答交流", "搞笑", "杂志", "百科",
  "影视娱乐", "求职", "兼职", "视频", "短视频", "音乐", "直播", "电台", "K歌", "成人", "中小学", "职考", "公务员",
  "英语", "视频教育", "高等教育", "成人教育", "艺术", "语言(非英语)", "旅游资讯", "综合预定", "民航", "铁路",
  "酒店", "行程管理", "民宿短租", "出国", "工具", "亲子儿童", "母婴", "驾校", "违章", "汽车咨询", "汽车交易",
  "日常养车", "行车辅助", "租房", "买房", "装修家居", "电子产品", "问诊挂号", "养生保健", "医疗服务", "减肥瘦身",
  "美妆美业", "菜谱", "餐饮店", "体育咨讯", "运动健身", "支付", "保险", "股票", "借贷", "理财", "彩票", "记账",
  "银行", "美颜", "影像剪辑", "摄影修图", "相机", "绘画", "二手", "电商", "团购", "外卖", "电影票务", "社区超市",
  "购物咨询", "笔记", "办公", "日程管理", "女性", "经营", "收款", "其他",
)


@dataclasses.dataclass(frozen=True)
class StandIn:
  """A file used where the official one is not there; `what` says what it really is."""

  folder: str
  filename: str
  what: str


@dataclasses.dataclass(frozen=True)
class ClueFiles:
  """Where a CLUE task's rows lie and how they are written.

  Attributes:
    official: the published file of each split; the folder is the task's name.
    labels: from the label as published to its name.
    text_pair_column: field with the second text, or None.
    text_column: field with the text.
    dropped_labels: rows so labelled are left out, as CLUE does.
    stand_ins: per split, files to use instead, in order.
  """

  official: dict[str, str]
  labels: dict[str, str]
  text_pair_column: str | None = None
  text_column: str = "sentence"
  dropped_labels: tuple[str, ...] = ()
  stand_ins: dict[str, tuple[StandIn, ...]] = dataclasses.field(default_factory=dict)


_FILES = {
  "tnews": ClueFiles(
    official={"train": "train.json", "validation": "dev.json", "test": "test.json"},
    labels=_TNEWS_LABELS,
    stand_ins={
      "validation": (StandIn("tnews", "test.json", "the labelled file that this archive calls test.json"),),
    },
  ),
  "afqmc": ClueFiles(
    official={"train": "train.json", "validation": "dev.json", "test": "test.json"},
    labels={"0": "0", "1": "1"},
    text_column="sentence1",
    text_pair_column="sentence2",
  ),
  "ocnli": ClueFiles(
    official={"train": "train.50k.json", "validation": "dev.json", "test": "test.json"},
    labels={name: name for name in ("contradiction", "neutral", "entailment")},
    text_column="sentence1",
    text_pair_column="sentence2",
    dropped_labels=("-",),
    stand_ins={
      "train": tuple(
        StandIn("ocnli", f"train.{size}.json", f"the {size} part of the 50k training rows") for size in ("30k", "10k")
      ),
    },
  ),
  "iflytek": ClueFiles(
    official={"train": "train.json", "validation": "dev.json", "test": "test.json"},
    labels={str(index): name for index, name in enumerate(_IFLYTEK_NAMES)},
    # DataCLUE's files share 151 rows with FewCLUE's train_0, so validation stays within FewCLUE, which shares none.
    stand_ins={
      "train": (StandIn("fewclue/iflytek", "train_0.json", "FewCLUE's few-shot train_0, not the 12,133 rows"),),
      "validation": (StandIn("fewclue/iflytek", "test_public.json", "FewCLUE's test_public, not CLUE's dev"),),
    },
  ),
}


def _read(name: str, split: str, data_dir: Path | None) -> Split:
  files = _FILES[name]
  rows = read_json_lines(_file(name, split, data_dir))
  if split == "test":
    rows = _without_labels(rows)
  return make_split(
    rows,
    files.text_column,
    files.text_pair_column,
    None if split == "test" else "label",
    {published: index for index, published in enumerate(files.labels)},
    id_column="id",
    dropped_labels=files.dropped_labels,
  )


def _without_labels(rows: Iterator[Row]) -> Iterator[Row]:
  # Copies of the archives go round whose test.json is the labelled dev set: scoring it as the test set would mislead.
  first = next(rows, None)
  if first is None:
    return rows
  if "label" in first[1]:
    raise UserError(f"{first[0]}: has a label, so this is not CLUE's test split, which is published without.")
  return itertools.chain([first], rows)


def _file(name: str, split: str, data_dir: Path | None) -> DataFile:
  if data_dir is None:
    raise UserError(f"Task {name} needs the data directory: set FSB_DATA_DIR, or --gin.DATA_DIR of a run.")
  official = _FILES[name].official[split]
  found = find(data_dir, name, official)
  if found:
    return found
  stand_ins = _FILES[name].stand_ins.get(split, ())
  for stand_in in stand_ins:
    found = find(data_dir, stand_in.folder, stand_in.filename)
    if found:
      logging.getLogger(__name__).warning(
        "%s, split %s: %s is not there, using %s (%s)", name, split, official, found, stand_in.what
      )
      return found
  looked_for = " or ".join([f"{name}/{official}", *(f"{each.folder}/{each.filename}" for each in stand_ins)])
  raise UserError(
    f"Task {name} found no file for its split {split!r}: looked in the data directory {data_dir} for {looked_for} "
    f"(plain, .gz, or inside {name}_public.zip); get https://storage.googleapis.com/cluebenchmark/tasks/"
    f"{name}_public.zip (CLUE, https://github.com/CLUEbenchmark/CLUE) and put it into {data_dir / name}."
  )


def _task(name: str, summary: str) -> TextTask:
  files = _FILES[name]
  label_names = tuple(files.labels.values())
  return TextTask(name, summary, label_names, bool(files.text_pair_column), _SPLITS, functools.partial(_read, name))


TASKS = (
  _task("tnews", "news titles of Toutiao, by subject"),
  _task("afqmc", "pairs of questions to Ant Financial: the same meaning or not"),
  _task("ocnli", "premise and hypothesis, written in Chinese"),
  _task("iflytek", "descriptions of apps, by kind of app"),
)
