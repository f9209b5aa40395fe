# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Python client, as it is on PyPI, against the server."""

import asyncio
import importlib.util
import json
import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pydantic
import pytest

CAPITAL = "What is the capital of France?"
PARIS = "The capital of France is Paris."
# More than the 512 tokens that a request may have here.
LONG = "one two three " * 400


def known_answers():
    """What the tiny model must know: images/llm/model/check.py, beside the model."""
    spec = importlib.util.spec_from_file_location("check", "/magnetar/images/llm/model/check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    return [(turns, expected, isinstance(expected, check.Whole)) for turns, expected in check.questions()]


@pytest.fixture(scope="module")
def client(server):
    # A request that fails is not sent again: each of them must be answered.
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def user(*turns):
    return [{"role": "user", "content": turn} for turn in turns]


def chat(client, question, **options):
    return client.chat.completions.create(**{"model": "tiny", "messages": user(question), "temperature": 0} | options)


def streamed(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_models_are_listed_by_name(client):
    assert [model.id for model in client.models.list()] == ["tiny", "embedding"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_chat_has_the_known_answers(client):
    for turns, expected, is_whole in known_answers():
        messages = []
        for turn in turns:
            messages += user(turn)
            choice = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=400).choices[0]
            messages.append({"role": "assistant", "content": choice.message.content})
        assert choice.finish_reason == "stop", turns
        answer = choice.message.content
        assert answer == expected if is_whole else expected in answer, (turns, answer)


def test_an_answer_says_what_it_took(client):
    answer = chat(client, CAPITAL)
    assert (answer.object, answer.model, answer.choices[0].message.role) == ("chat.completion", "tiny", "assistant")
    assert answer.choices[0].message.content == PARIS
    usage = answer.usage
    assert usage.prompt_tokens > 8 and usage.completion_tokens > 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_streamed_chat_comes_in_pieces(client):
    chunks = list(chat(client, CAPITAL, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 4 and "".join(pieces) == PARIS
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens >= len(pieces)
    assert len({chunk.id for chunk in chunks}) == 1
    # One character in four tokens, which no piece may tear.
    assert streamed(chat(client, "Send me a smile.", stream=True)) == "Here is a smile: \N{GRINNING FACE}"


def test_a_stream_that_is_closed_is_given_up(client):
    with chat(client, "Count from 1 to 100.", stream=True) as stream:
        next(iter(stream))
    assert chat(client, CAPITAL).choices[0].message.content == PARIS


def test_a_text_is_continued(client):
    prompt = f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(model="tiny", prompt=prompt, temperature=0)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == ("text_completion", PARIS, "stop")
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="tiny", prompt=prompt, temperature=0, stream=True)]
    assert len(pieces) > 4 and "".join(pieces) == PARIS


def test_related_texts_have_close_embeddings(client):
    texts = [CAPITAL, "What is 2 plus 3?", PARIS, "2 plus 3 is 5.", CAPITAL]

    def unit(vector):
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    # The client asks for base64 when it is told nothing.
    packed = client.embeddings.create(model="embedding", input=texts)
    plain = client.embeddings.create(model="embedding", input=texts, encoding_format="float")
    assert [each.index for each in packed.data] == list(range(len(texts))) and packed.usage.prompt_tokens > len(texts)
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 128 and one.embedding == pytest.approx(other.embedding, abs=1e-4)
    country, total, paris, five, again = (unit(each.embedding) for each in plain.data)
    assert country == pytest.approx(again, abs=1e-4)
    assert math.sumprod(country, paris) > math.sumprod(country, five)
    assert math.sumprod(total, five) > math.sumprod(total, paris)


def test_errors_are_the_clients_own(client):
    def refused(kind, code, param, **options):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                chat(client, CAPITAL, stream=stream, **options)
            assert (caught.value.code, caught.value.param) == (code, param), caught.value

    refused(openai.NotFoundError, "model_not_found", "model", model="gpt-9")
    refused(openai.BadRequestError, "invalid_value", "temperature", temperature="hot")
    refused(openai.BadRequestError, "invalid_value", "temperature", temperature=-1)
    refused(openai.BadRequestError, "context_length_exceeded", "messages", messages=user(LONG))
    for options in ({"messages": []}, {"n": 2}, {"tools": [{"type": "function", "function": {"name": "clock"}}]}):
        with pytest.raises(openai.BadRequestError):
            chat(client, CAPITAL, **options)
    assert chat(client, CAPITAL).choices[0].message.content == PARIS


def test_an_answer_ends_where_it_is_told_to(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(client, CAPITAL, **{name: 2})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)
    assert [chunk.choices[0].finish_reason for chunk in chat(client, CAPITAL, max_tokens=2, stream=True)][-1] == "length"
    answer = chat(client, CAPITAL, stop=["Paris"])
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("stop", "The capital of France is ")


def test_json_can_be_parsed(client):
    question = f"{CAPITAL} Answer in JSON."
    answer = chat(client, question, response_format={"type": "json_object"}, max_tokens=200).choices[0]
    assert answer.finish_reason == "stop" and json.loads(answer.message.content) == {"country": "France", "capital": "Paris"}

    class Country(pydantic.BaseModel):
        country: str
        capital: str

    parsed = client.chat.completions.parse(model="tiny", messages=user(question), temperature=0, max_tokens=200, response_format=Country)
    assert parsed.choices[0].message.parsed == Country(country="France", capital="Paris")


def test_a_hundred_requests_of_eight_threads_are_answered_in_full(client, server):
    answered = server.metric('llm_requests_total{endpoint="/v1/chat/completions",status="200"}')

    def ask(turn):
        if turn % 3 == 0:
            return streamed(chat(client, CAPITAL, stream=True))
        answer = chat(client, CAPITAL).choices[0]
        assert answer.finish_reason == "stop"
        return answer.message.content

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(100)))
    assert answers == [PARIS] * 100
    assert server.metric('llm_requests_total{endpoint="/v1/chat/completions",status="200"}') == answered + 100


def test_the_asynchronous_client_is_answered(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            answers = await asyncio.gather(*(chat(client, CAPITAL) for _ in range(8)))
            pieces = [chunk async for chunk in await chat(client, CAPITAL, stream=True)]
            return [answer.choices[0].message.content for answer in answers] + [streamed(pieces)]

    assert asyncio.run(ask()) == [PARIS] * 9
