# SPDX-License-Identifier: Apache-2.0
"""The server's chat page in Chromium, with a window of a desktop and one of a phone."""

import json
import os
import pathlib
import re
from contextlib import contextmanager
from importlib.resources import files
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import pods

# Width and height in CSS pixels.
DESKTOP = (1280, 800)
PHONE = (390, 844)
COUNT = " ".join(str(number) for number in range(1, 101))
# Rules of axe-core, by their tags: WCAG 2.2 up to AA, and what is good practice beyond.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SCREENSHOTS = pathlib.Path(os.environ["SCREENSHOTS"])
# The page leaves it to the server how random an answer is. What the tiny model answers is known at
# temperature 0 only.
CERTAIN = """
const send = window.fetch;
window.fetch = (url, options) => send(url, options?.body ? {...options, body: JSON.stringify({...JSON.parse(options.body), temperature: 0})} : options);
"""
# Notes each new text of an answer as it comes.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const last = [...document.querySelectorAll('.assistant')].pop();
  if (last) window.seen.push([last.classList.contains('writing'), last.textContent.length]);
}).observe(document.getElementById('messages'), {childList: true, subtree: true, characterData: true, attributes: true});
"""


class Page:
    """The page in a browser of its own."""

    def __init__(self, driver, server):
        self.driver = driver
        driver.get(f"{server.url}/")
        pods.until("the page knows the model", lambda: driver.title == "tiny")

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        try:
            return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]
        except StaleElementReferenceException:
            # The page has changed meanwhile.
            return self.texts(selector)

    @property
    def box(self):
        return self.one("#question")

    @property
    def button(self):
        return self.one("#send")

    def value(self):
        return self.box.get_property("value")

    def send(self, question):
        self.box.send_keys(question, Keys.ENTER)

    def is_answering(self):
        return self.button.text == "Stop"

    def answered(self):
        """Waits for the end of an answer, and returns all that there is on the page."""
        pods.until("the answer ends", lambda: not self.is_answering())
        return self.texts(".assistant.done")

    def ask(self, question):
        self.send(question)
        return self.answered()[-1]

    def writing(self):
        """Waits until a part of an answer is there, and returns it."""
        return pods.until("an answer begins", lambda: next((text for text in self.texts(".assistant.writing") if len(text) > 4), None))

    def screenshot(self, name):
        SCREENSHOTS.mkdir(exist_ok=True)
        self.driver.save_screenshot(SCREENSHOTS / f"{name}.png")

    def scheme(self, name):
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})

    def complaints(self):
        """What the browser has written to its console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self):
        """The addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]

    def violations(self):
        """What axe-core finds wrong."""
        self.driver.execute_script(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        run = "const done = arguments[1]; axe.run(document, {runOnly: arguments[0]}).then(done, error => done({error: String(error)}));"
        result = self.driver.execute_async_script(run, RULES)
        assert len(result["passes"]) > 10, result
        return [(rule["id"], [node["failureSummary"] for node in rule["nodes"]]) for rule in result["violations"]]


@contextmanager
def browser(size):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.add_argument("--headless=new")
    # All in a node runs as root, and as root Chromium starts without its sandbox or not at all. It
    # loads nothing but our own page.
    options.add_argument("--no-sandbox")
    if size == PHONE:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True, "mobile": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.set_script_timeout(pods.PATIENCE)
        if size != PHONE:
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": CERTAIN})
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module", params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request):
    with browser(request.param) as driver:
        driver.size = request.param
        yield driver


@pytest.fixture
def page(window, server):
    page = Page(window, server)
    yield page
    assert page.complaints() == []


@pytest.fixture
def slow(server):
    """Has the server answer slowly, so that what happens during an answer can be seen."""
    server.limit(pods.TWENTIETH)
    yield
    server.limit(pods.WHOLE)


def test_it_loads_from_the_server_alone_and_fits(page, server):
    requested = page.requested()
    assert requested and {urlsplit(url).netloc for url in requested if not url.startswith("data:")} == {urlsplit(server.url).netloc}
    width, height, content = page.driver.execute_script("return [innerWidth, innerHeight, document.documentElement.scrollWidth]")
    assert ((width, height), content) == (page.driver.size, width)
    for element in (page.box, page.button):
        place = element.rect
        assert place["x"] >= 0 and place["x"] + place["width"] <= width and place["y"] + place["height"] <= height
        # A finger's width (WCAG 2.5.5).
        assert place["height"] >= 44
    assert page.driver.switch_to.active_element == page.box


def test_an_answer_grows_while_it_comes(page, slow):
    page.driver.execute_script(WATCH)
    assert page.ask("Count from 1 to 100.") == COUNT
    lengths = sorted({length for is_writing, length in page.driver.execute_script("return window.seen") if is_writing and length})
    assert len([length for length in lengths if length < len(COUNT)]) > 10, lengths
    assert re.fullmatch(r"29\d tokens, [\d.]+ a second", page.one("#state").text), page.one("#state").text
    view = "const view = document.getElementById('conversation'); return view.scrollHeight - view.scrollTop - view.clientHeight"
    assert page.driver.execute_script(view) < 2, "the end of the answer is in view"


def test_a_conversation_is_remembered(page):
    page.ask("My name is Ada.")
    assert page.ask("What is the capital of France?") == "The capital of France is Paris."
    page.ask("Send me a smile.")
    assert page.ask("What is my name?") == "Your name is Ada."
    page.scheme("light")
    page.screenshot(f"{page.driver.size[0]}-light")
    page.scheme("dark")
    page.screenshot(f"{page.driver.size[0]}-dark")
    page.scheme("")


def test_a_conversation_that_gets_too_long_forgets_its_beginning(page):
    assert page.ask("Count from 1 to 100.") == COUNT
    # Of the 512 tokens that a conversation may have here, this was more than a half.
    cut = page.ask("Count from 1 to 100.")
    assert COUNT.startswith(cut.strip()) and len(cut) > 100
    assert page.texts(".note") == ["The answer was cut off here: the server has no room for more."]
    assert page.ask("What is the capital of France?") == "The capital of France is Paris."
    assert page.ask("What is 2 plus 3?") == "2 plus 3 is 5."
    assert page.texts(".error") == []
    # That it did not fit is written by the browser to its console, and told to nobody.
    assert [message for message in page.complaints() if "400 (Bad Request)" not in message] == []


def test_enter_sends_and_shift_enter_begins_a_new_line(page):
    height = page.box.rect["height"]
    page.box.send_keys("What is the capital", Keys.SHIFT, Keys.ENTER, Keys.NULL, "of France?")
    assert page.value() == "What is the capital\nof France?"
    assert page.box.rect["height"] > height and page.texts(".user") == []
    page.box.send_keys(Keys.ENTER)
    assert page.answered() and page.texts(".user") == ["What is the capital\nof France?"]
    assert page.value() == "" and page.box.rect["height"] == height
    page.box.send_keys("   ", Keys.ENTER)
    assert len(page.texts(".user")) == 1


@pytest.mark.parametrize("how", ["the button", "Escape"])
def test_an_answer_can_be_stopped(page, server, slow, how):
    given_up = 'llm_requests_total{endpoint="/v1/chat/completions",status="499"}'
    before = server.metric(given_up)
    page.send("Count from 1 to 100.")
    page.writing()
    # The next question can be written meanwhile, and stays where it is.
    page.box.send_keys("What is 2 plus 3?", Keys.ENTER)
    assert page.is_answering()
    if how == "Escape":
        page.box.send_keys(Keys.ESCAPE)
    else:
        page.button.click()
    (text,) = page.answered()
    assert COUNT.startswith(text) and text != COUNT
    pods.until("the server has given the answer up", lambda: server.metric(given_up) > before and server.metric("llm_active_generations") == 0)
    assert page.texts(".assistant") == [text] and page.texts(".error") == []
    server.limit(pods.WHOLE)
    assert page.value() == "What is 2 plus 3?"
    # What the model makes of half a count is not known.
    assert page.ask("") and len(page.texts(".assistant")) == 2 and page.texts(".error") == []


def test_a_question_that_is_refused_says_why(page):
    question = "one two three " * 400
    # Typed, it would take its time.
    page.driver.execute_script("arguments[0].value = arguments[1]", page.box, question)
    page.button.click()
    pods.until("it is refused", lambda: page.texts(".error"))
    (said,) = page.texts(".error")
    assert re.fullmatch(r"The prompt of \d+ tokens does not fit into the model's context: it has 512 tokens\.", said), said
    # It can be made shorter.
    assert page.value() == question.strip() and page.texts(".assistant") == []
    assert [message for message in page.complaints() if "400 (Bad Request)" not in message] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(page, scheme):
    page.scheme(scheme)
    assert page.violations() == []
    page.ask("What is a pod?")
    page.driver.execute_script("show('error', 'Error', 'An error to look at.')")
    assert page.violations() == []
    page.scheme("")


def test_a_server_that_dies_is_told_in_a_sentence(window, server):
    with pods.Server(f"dying-{server.handler}-{window.size[0]}", server.handler) as dying:
        page = Page(window, dying)
        dying.limit(pods.TWENTIETH)
        page.send("Count from 1 to 100.")
        page.writing()
        dying.kill()
        (text,) = page.answered()
        assert COUNT.startswith(text) and text != COUNT
        assert page.texts(".error") == ["The connection to the server broke before the answer was complete."]
        page.send("What is 2 plus 3?")
        pods.until("the page says it", lambda: len(page.texts(".error")) == 2)
        assert page.texts(".error")[1] == "The server cannot be reached. Wait a moment, then ask again."
        assert page.value() == "What is 2 plus 3?", "it can be asked again"
        page.screenshot(f"{window.size[0]}-error")
        # The browser itself notes failed connections.
        assert [message for message in page.complaints() if "net::ERR_" not in message] == []
