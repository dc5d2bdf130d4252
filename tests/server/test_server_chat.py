"""OpenAI's own client against the server."""

import base64
import io
from typing import Any

import av
import numpy as np
import openai
import pytest
from server_kit import NAME, Served, encoded, eventually, fault, picture

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model


@pytest.fixture
def client(served: Served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def film(count: int = 6, fps: int = 2) -> bytes:
    """An mp4 whose frames differ."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as box:
        stream = box.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for index in range(count):
            frame = np.full((56, 84, 3), 40 * index % 256, np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        box.mux(stream.encode())
    return file.getvalue()


def greedy(model: Model, messages: list[dict[str, Any]], tokens: int = 12) -> str:
    """What transformers' generate says."""
    inputs = model.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return model.processor.tokenizer.decode(written, skip_special_tokens=True)


def complete(client: openai.OpenAI, content: Any, **options: Any) -> Any:
    options = {"model": NAME, "max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [NAME]


def test_text(client: openai.OpenAI, model: Model):
    done = complete(client, "What is it?")
    choice = done.choices[0]
    assert choice.message.content == greedy(model, [{"role": "user", "content": "What is it?"}])
    assert (choice.message.role, choice.finish_reason, done.model) == ("assistant", "length", NAME)
    assert done.usage.completion_tokens == 12 and done.usage.total_tokens == 12 + done.usage.prompt_tokens


def test_a_conversation_with_a_system_message(client: openai.OpenAI, model: Model):
    messages: Any = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."}, {"role": "user", "content": [{"type": "text", "text": "C?"}]},
    ]  # fmt: skip
    done = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=12)
    assert done.choices[0].message.content == greedy(model, messages)


def test_a_picture(client: openai.OpenAI, model: Model):
    def asked(frame: np.ndarray) -> str:
        url = address("image/png", encoded(frame))
        parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, {"type": "text", "text": "?"}]
        return complete(client, parts).choices[0].message.content

    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "?"}]
    assert asked(picture(1)) == greedy(model, [{"role": "user", "content": parts}]) != asked(picture(2))


def test_a_video(client: openai.OpenAI, model: Model, tmp_path):
    def asked(data: bytes) -> str:
        parts = [
            {"type": "video_url", "video_url": {"url": address("video/mp4", data)}},
            {"type": "text", "text": "?"},
        ]
        return complete(client, parts).choices[0].message.content

    (tmp_path / "film.mp4").write_bytes(film())
    parts = [{"type": "video", "path": str(tmp_path / "film.mp4"), "fps": 2.0}, {"type": "text", "text": "?"}]
    assert asked(film()) == greedy(model, [{"role": "user", "content": parts}]) != asked(film(2))


def test_it_streams(client: openai.OpenAI):
    whole = complete(client, "What is it?").choices[0].message.content
    *chunks, last = complete(client, "What is it?", stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole and len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert last.choices == [] and last.usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in complete(client, "What is it?", stream=True))


def test_how_it_is_written(client: openai.OpenAI):
    greedily = complete(client, "What is it?").choices[0].message.content
    warm = [complete(client, "What is it?", temperature=2, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    one, same, other = [done.choices[0].message.content for done in warm]
    assert one == same and len({one, other, greedily}) == 3
    place = next(i for i, letter in enumerate(greedily) if i and letter.isascii())
    stopped = complete(client, "What is it?", stop=[greedily[place]]).choices[0]
    assert stopped.message.content == greedily[: greedily.index(greedily[place])] and stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    "option",
    [
        {"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"logprobs": True},
        {"top_logprobs": 2}, {"response_format": {"type": "json_object"}}, {"frequency_penalty": 1},
        {"logit_bias": {"5": 1}}, {"extra_body": {"guided_json": {}}}, {"modalities": ["audio"]},
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_an_error(client: openai.OpenAI, option: dict[str, Any]):
    with pytest.raises(openai.UnprocessableEntityError, match=next(iter(option.get("extra_body", option)))):
        complete(client, "?", **option)


def test_what_changes_nothing_is_taken(client: openai.OpenAI):
    plain = complete(client, "?").choices[0].message.content
    options: Any = {
        "n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "response_format": {"type": "text"},
        "frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False,
    }  # fmt: skip
    assert complete(client, "?", **options).choices[0].message.content == plain


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,####", "data:image/png;base64,AAAA", "data:,", "data:image/png", "nothing at all"],
)
def test_pictures_that_cannot_be_read(served: Served, url: str):
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    given = {"model": NAME, "messages": [{"role": "user", "content": parts}]}
    response = served.http.post("/v1/chat/completions", json=given)
    assert response.status_code in (400, 403)
    fault(response, response.status_code, "invalid_request" if response.status_code == 400 else "permission")


def test_other_mistakes(served: Served, client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="no model other"):
        complete(client, "?", model="other")
    with pytest.raises(openai.APIStatusError, match="tokens"):
        complete(client, "why " * 3000)
    for messages in ([], [{"role": "robot", "content": "?"}], [{"role": "user"}], "what?"):
        response = served.http.post("/v1/chat/completions", json={"model": NAME, "messages": messages})
        fault(response, 422, "invalid_request")


def test_marks_of_the_template_in_a_text_are_no_pictures(served: Served):
    given = {"model": NAME, "messages": [{"role": "user", "content": "<|image_pad|>"}], "max_tokens": 2}
    assert served.http.post("/v1/chat/completions", json=given).status_code in (200, 400)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_cancels_its_answer(served: Served, streamed: bool):
    given = {"model": NAME, "messages": [{"role": "user", "content": "?"}], "max_tokens": 4000, "stream": streamed}
    with served.client(None) as client:
        request = client.build_request("POST", "/v1/chat/completions", json=given, timeout=0.5)
        if streamed:
            response = client.send(request, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            with pytest.raises(Exception, match="timed out"):
                client.send(request)
    assert eventually(lambda: not served.hub.engine.load()["answers"], 5)
