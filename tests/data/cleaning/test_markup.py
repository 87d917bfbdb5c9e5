"""HTML goes out of texts, entities become characters once, and what is no HTML stays."""

import html
import html.parser
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsft.data.cleaning import edits, markup, text


def clean(value):
  return text.changed("markup", value)[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("&amp; &lt; &copy &#8364; &notit; &bogus; & ; a é".split())))
def test_references_are_the_standard_librarys(parts):
  value = "".join(parts)
  assert clean(value) == html.unescape(value)


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ("<p>one<br/>two</p>", " one two "),
    ("a <b>bold</b> x", "a bold x"),
    ("H<sub>2</sub>O", "H2O"),
    ("<a title='x > y'>z</a>", "z"),
    ('<A HREF=x CLASS="y z" HIDDEN data-k>z</A >', "z"),
    ("<!DOCTYPE html><html lang=en>hi</html>", " hi "),
    ("a<!-- b -->c", "ac"),
    ("x<script src='s'>if (a < b) { c('</b>') }</script>y<STYLE>p {}</STYLE>", "xy"),
    ("<![CDATA[a < <b> &amp;]]>z", "a < <b> &amp;z"),
    ("<?xml version='1.0'?>x", "x"),
    ("AT&T &copy; &lt;3", "AT&T © <3"),
  ],
)
def test_what_is_taken_out(before, after):
  assert clean(before) == after


@pytest.mark.parametrize(
  "value",
  [
    "1 < 2 and 3 > 2",
    "a<b and c>d",
    "if i<p; j++ > 3",
    "List<Object> x; Map<Button>",
    "std::vector<T>, <context>, </context>, <user_id>",
    "<a href='x",
    "the <style> element, and <script> too, hide the rest",
    "a <!-- b",
    "a <![CDATA[ b",
    "<?php echo 1 ?>",
    "</b and more>",
  ],
)
def test_what_is_no_html_stays(value):
  assert clean(value) == value


def test_entities_are_read_once_and_make_no_tags():
  assert clean("x&lt;y then z&gt;w") == "x<y then z>w"
  assert clean("&lt;b&gt;a&lt;/b&gt;") == "<b>a</b>"
  assert clean("&amp;lt;b&amp;gt;z") == "&lt;b&gt;z"
  assert clean("&am<b>p;</b>") == "&amp;"  # as browsers read it


def test_names_are_those_of_html():
  """html.parser knows elements whose content is text: they are among the names."""
  known = markup.BLOCKS | markup.INLINE | set(markup.HIDDEN)
  assert set(html.parser.HTMLParser.CDATA_CONTENT_ELEMENTS) <= known
  assert not markup.BLOCKS & markup.INLINE
  assert all(name.isalnum() and name.islower() for name in known)


PARTS = "a 1 & < > <b> </b> <p> <x> &lt; &gt; </script> ' \" =".split()


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
def test_what_html_parser_calls_text_is_never_lost(value):
  class Texts(html.parser.HTMLParser):
    said = ""

    def handle_data(self, data):
      self.said += data

  parser = Texts()
  parser.feed(value)
  parser.close()
  left = iter(clean(value))
  assert all(c in left for c in parser.said if c in "a1")


def test_spans_follow():
  before = "<i>see</i> &amp; <b>Ada</b>!"
  at = before.index("Ada")
  after, ((start, end),) = text.changed("markup", before, [(at, at + 3)])
  assert after == "see & Ada!" and after[start:end] == "Ada"
  assert edits.apply(before, markup.edits_of(before)) == after


@pytest.mark.parametrize("part", ["<a x='", "<script>", "<!--", "<a x=1 ", "</a", "<a x "])
def test_time_grows_with_the_text(part):
  times = []
  for count in (5_000, 40_000):
    began = time.process_time()
    clean(part * count)
    times.append(time.process_time() - began)
  assert times[1] < 40 * max(times[0], 0.005)
