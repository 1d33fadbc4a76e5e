import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fsb_jax.encodings.conversations import (
  TEMPLATES,
  conversation_prompt,
  own_conversation_prompt,
  split_stops,
)
from fsb_jax.errors import UserError

ONE = [{"role": "user", "content": "为什么要减少污染，保护环境？"}]
SYSTEM = {"role": "system", "content": "你是{诗人}。"}
TWO = [
  {"role": "user", "content": "你好，请介绍北京。 "},
  {"role": "assistant", "content": "北京是中国的首都。"},
  {"role": "user", "content": "再短一点"},
]
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
USER, ASSISTANT, SAYS = (HEADER.format(role) for role in ("user", "assistant", "system"))
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
HELPFUL = "You are a helpful assistant. 你是一个乐于助人的助手。"

TEXTS = {
  ("ziya", "one"): "<human>:为什么要减少污染，保护环境？\n<bot>:",
  ("ziya", "two"): "<human>:你好，请介绍北京。\n<bot>:北京是中国的首都。</s><human>:再短一点\n<bot>:",
  ("chinese_alpaca", "one"): f"{ALPACA}### Instruction:\n为什么要减少污染，保护环境？\n\n### Response: ",
  ("chinese_alpaca", "two"): f"{ALPACA}### Instruction:\n你好，请介绍北京。 \n\n### Response: 北京是中国的首都。\n\n"
  "### Instruction:\n再短一点\n\n### Response: ",
  ("chinese_alpaca", "system"): "你是{诗人}。\n\n### Instruction:\n为什么要减少污染，保护环境？\n\n### Response: ",
  ("chinese_alpaca_2", "one"): f"[INST] <<SYS>>\n{HELPFUL}\n<</SYS>>\n\n为什么要减少污染，保护环境？ [/INST]",
  ("chinese_alpaca_2", "two"): f"[INST] <<SYS>>\n{HELPFUL}\n<</SYS>>\n\n你好，请介绍北京。  [/INST]"
  " 北京是中国的首都。</s><s>[INST] 再短一点 [/INST]",
  ("chinese_alpaca_2", "system"): "[INST] <<SYS>>\n你是{诗人}。\n<</SYS>>\n\n为什么要减少污染，保护环境？ [/INST]",
  ("llama_3_chinese", "one"): f"{SAYS}{HELPFUL}<|eot_id|>"
  f"{USER}为什么要减少污染，保护环境？<|eot_id|>{ASSISTANT}",
  ("llama_3_chinese", "two"): f"{SAYS}{HELPFUL}<|eot_id|>{USER}你好，请介绍北京。 <|eot_id|>{ASSISTANT}"
  f"北京是中国的首都。<|eot_id|>{USER}再短一点<|eot_id|>{ASSISTANT}",
  ("llama_3_chinese", "system"): f"{SAYS}你是{{诗人}}。<|eot_id|>"
  f"{USER}为什么要减少污染，保护环境？<|eot_id|>{ASSISTANT}",
}  # fmt: skip


@pytest.mark.parametrize("template,kind", TEXTS)
def test_texts(template, kind):
  messages = {"one": ONE, "two": TWO, "system": [SYSTEM, *ONE]}[kind]
  prompt = conversation_prompt(messages, template)
  assert prompt.text == TEXTS[template, kind]
  assert prompt == conversation_prompt(messages, TEMPLATES[template])
  assert prompt.special_tokens == (template != "ziya")
  turns = TEMPLATES[template].turns(messages)
  assert "".join(a + b for a, b in turns) == prompt.text and turns[-1][1] == ""


def test_turns_to_learn_from():
  answered = [*TWO, {"role": "assistant", "content": "首都。 "}]
  assert TEMPLATES["ziya"].turns(answered) == [
    ("<human>:你好，请介绍北京。\n<bot>:", "北京是中国的首都。</s>"),
    ("<human>:再短一点\n<bot>:", "首都。</s>"),
  ]


@pytest.mark.parametrize("messages,template,sentence", [
  (ONE, "vicuna", "unknown template 'vicuna'; known: ziya, chinese_alpaca"),
  ([SYSTEM, *ONE], "ziya", "no place for a message of the system"),
  ([], "ziya", "no message of the user"),
  ([SYSTEM], "llama_3_chinese", "no message of the user"),
  (TWO[:2], "ziya", "the last message is the assistant's"),
  ([SYSTEM, *TWO[1:]], "llama_3_chinese", "message 1 is of 'assistant' where 'user' is next"),
  ([*ONE, *ONE], "ziya", "message 1 is of 'user' where 'assistant' is next"),
  ([*ONE, SYSTEM, *ONE], "llama_3_chinese", "message 1 is of 'system' where 'assistant' is next"),
  ([{"role": "user"}], "ziya", "message 0 is .* each needs a role and a content"),
  ([{"role": "user", "content": None}], "ziya", "the content of message 0 is None, not a text"),
  (["你好"], "ziya", "message 0 is '你好'; each needs a role and a content"),
])  # fmt: skip
def test_what_is_no_conversation_is_said(messages, template, sentence):
  with pytest.raises(UserError, match=sentence):
    conversation_prompt(messages, template)


def a_tokenizer(**options):
  marks = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
  backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
  backend.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=marks[0], eos_token=marks[1], **options
  )


def test_the_tokenizers_own_template():
  # As Llama 3's is: every message has its header, and the text begins with its own mark.
  template = (
    "{% for message in messages %}{{ bos_token if loop.first }}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
  )
  tokenizer = a_tokenizer(chat_template=template)
  prompt = own_conversation_prompt(tokenizer, [SYSTEM, *TWO])
  ours = conversation_prompt([SYSTEM, {**TWO[0], "content": TWO[0]["content"].strip()}, *TWO[1:]], "llama_3_chinese")
  assert prompt.text == f"<|begin_of_text|>{ours.text}" and prompt.special_tokens is False
  assert set(prompt.stops) == set(ours.stops)
  with pytest.raises(UserError, match="the last message is the assistant's"):
    own_conversation_prompt(tokenizer, TWO[:2])
  with pytest.raises(UserError, match="has no chat template; name one of fsb_jax's: ziya"):
    own_conversation_prompt(a_tokenizer(), ONE)


@pytest.mark.parametrize("template,reason", [
  ("{{ raise_exception('System role not supported') }}", "System role not supported"),
  ("{% for message in messages %}", "Unexpected end of template"),
])  # fmt: skip
def test_what_the_tokenizers_own_template_does_not_take(template, reason):
  with pytest.raises(UserError, match=f"chat template does not take this conversation: {reason}"):
    own_conversation_prompt(a_tokenizer(chat_template=template), [SYSTEM, *ONE])


def test_stops_that_are_one_token_and_those_that_are_not():
  tokenizer = a_tokenizer()
  ids = tokenizer.get_vocab()
  assert split_stops(tokenizer, TEMPLATES["llama_3_chinese"].stops) == (
    (ids["<|eot_id|>"], ids["<|end_of_text|>"]), ()
  )  # fmt: skip
  assert split_stops(tokenizer, ("### Instruction:",)) == ((ids["<|end_of_text|>"],), ("### Instruction:",))
