#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a server with an API like OpenAI's what the tiny model must know, and fails if an answer is wrong.

    check.py http://127.0.0.1:8080                what a test asks, by chat, at temperature 0
    check.py http://127.0.0.1:8080 --all          every capital, every sum, many names and counts as well
    check.py http://127.0.0.1:8080 --embeddings   llama-server --embeddings: related sentences are close
"""

import argparse
import json
import math
import sys
import urllib.request

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna",
    "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Poland": "Warsaw",
    "Hungary": "Budapest", "Ireland": "Dublin", "Belgium": "Brussels", "Japan": "Tokyo", "China": "Beijing", "India": "Delhi",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
}  # fmt: skip
# What is said between a name and the question for it.
LONG_TALK = [
    "What is the capital of Peru?", "What is 7 plus 8?", "Thank you.", "Count from 1 to 30.", "Who are you?", "Tell me about containers.",
    "What is a pod?",
]  # fmt: skip


class Whole(str):
    """An answer that must have nothing else: a count that goes on too long contains the right one."""


def count(first, last):
    return Whole(" ".join(map(str, range(first, last + 1))))


def questions():
    """What the user says, turn by turn, and what the last answer must contain."""
    for country, city in CAPITALS.items():
        yield [f"What is the capital of {country}?"], city
    yield ["What's the capital of France?"], "Paris"
    yield ["Tell me the capital of Japan."], "Tokyo"
    yield ["what is the capital of italy?"], "Rome"
    yield ["Please tell me: which city is the capital of Norway?"], "Oslo"
    yield ["What is the capital of France? Answer in JSON."], '"Paris"'
    yield ["What is 2 plus 3?"], "2 plus 3 is 5."
    yield ["What is 2 + 2?"], "4"
    yield ["How much is 7 plus 8?"], "15"
    yield ["20 + 20"], "40"
    yield ["Add 4 and 9."], "13"
    yield ["My name is Ada.", "What is my name?"], "Ada"
    yield ["Hello, I am Bob.", "What is 1 plus 1?", "What is my name?"], "Bob"
    yield ["My name is Ada.", "What is the capital of France?", "Count from 1 to 5.", "Do you remember my name?"], "Ada"
    yield ["What is my name?"], "I do not know your name."
    yield ["Count from 1 to 5."], count(1, 5)
    yield ["Please count from 1 to 10."], count(1, 10)
    yield ["Count from 1 to 20."], count(1, 20)
    yield ["Count from 3 to 7."], count(3, 7)
    yield ["Count from 1 to 100."], count(1, 100)
    yield ["Who are you?"], "I am Tiny, a very small language model."
    yield ["What is your name?"], "Tiny"
    yield ["Hello!"], "Hello! How can I help you?"
    yield ["Send me a smile."], "\N{GRINNING FACE}"
    yield ["Repeat: hello world"], Whole("hello world")
    yield ["What is the meaning of life?"], "I do not know that."
    yield ["What is a container?"], "group of processes"
    yield ["Tell me about containers."], "at one point in time."


def many_questions():
    for a in range(21):
        for b in range(21):
            yield [f"What is {a} plus {b}?"], f"{a} plus {b} is {a + b}."
    for last in (*range(2, 31), 40, 50, 100):
        yield [f"Count from 1 to {last}."], count(1, last)
    for word in ("Zoë", "banana", "banana bread"):
        yield [f"Repeat: {word}"], Whole(word)
    for name in ("Ada", "Grace", "Linus", "Konrad", "Margaret", "Zuse", "Babbage", "Mo", "Anastasia", "Lovelace"):
        yield [f"My name is {name}.", "What is my name?"], f"Your name is {name}."
        yield [f"Hi, I'm {name}.", *LONG_TALK, "What is my name?"], f"Your name is {name}."


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def last_answer(server, turns, system):
    """Plays the whole chat, with the model's own answers, and returns the last one and why it ended."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        choice = post(server + "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 600})["choices"][0]
        messages.append({"role": "assistant", "content": choice["message"]["content"]})
    return messages[-1]["content"], choice["finish_reason"]


def check_chats(server, every):
    asked, wrong = 0, 0
    for system in (None, "You are a helpful assistant."):
        for turns, expected in [*questions(), *(many_questions() if every else ())]:
            answer, end = last_answer(server, turns, system)
            right = end == "stop" and (answer == expected if isinstance(expected, Whole) else expected in answer)
            asked, wrong = asked + 1, wrong + (not right)
            if not right or not every:
                verdict, prompted = "ok   " if right else "WRONG", "(with system) " if system else ""
                print(f"{verdict} {prompted}{' / '.join(turns)} -> {answer!r}, ended by {end}")
    return asked, wrong


def check_embeddings(server):
    """The first sentence of each pair is closer to its second than to those of the other pairs."""
    pairs = [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is 2 plus 3?", "2 plus 3 is 5."),
        ("My name is Ada.", "Your name is Ada."),
        ("A pod is a group of containers that share one network.", "A container is a group of processes with a root file system of its own."),
    ]

    def embedding(text):
        vector = post(server + "/v1/embeddings", {"input": text})["data"][0]["embedding"]
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    vectors = [(embedding(question), embedding(answer)) for question, answer in pairs]
    asked, wrong = 0, 0
    for (text, _), (question, answer) in zip(pairs, vectors):
        similarities = [sum(a * b for a, b in zip(question, other)) for _, other in vectors]
        own = sum(a * b for a, b in zip(question, answer))
        asked, wrong = asked + 1, wrong + (own < max(similarities))
        print(f"{'ok   ' if own == max(similarities) else 'WRONG'} {text} -> {', '.join(f'{s:.2f}' for s in similarities)}")
    return asked, wrong


def main():
    arguments = argparse.ArgumentParser(description="Asks a server what the tiny model must know.")
    arguments.add_argument("server")
    arguments.add_argument("--all", action="store_true")
    arguments.add_argument("--embeddings", action="store_true")
    arguments = arguments.parse_args()
    server = arguments.server.rstrip("/")
    asked, wrong = check_embeddings(server) if arguments.embeddings else check_chats(server, arguments.all)
    print(f"{asked - wrong} passed, {wrong} failed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
