import io
import json
import struct

import pytest

from jaxdp.trainer.metrics import MetricsWriter, ProgressLine, TrainLog, read_metrics

VALUES = {"loss": 0.5, "accuracy": 0.75, "learning_rate": 0.1, "images_per_second": 1234.5}


def test_resumed_run_overwrites_the_steps_it_repeats(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, loss=float(step))
    writer.write(3, summary=True, test_accuracy=1.0)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write(3, loss=9.0)
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0}]
    assert read_metrics(tmp_path) == lines


def test_tensorboard_receives_the_values(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    writer.write(5, loss=0.25, norm={"head.bias": 2.0, "head.kernel": None})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    # In an event, a name (field 1) comes before its value (field 2), a float32.
    for name, value in [(b"loss", 0.25), (b"norm/head.bias", 2.0)]:
        assert bytes([0o12, len(name)]) + name + b"\x15" + struct.pack("<f", value) in content
    assert b"head.kernel" not in content


def test_progress_without_a_bar_is_plain_lines():
    out = io.StringIO()
    progress = ProgressLine(100, first_step=0, bar=False, out=out)
    progress.update(20, epoch=1.5, values=VALUES, seconds_per_step=2.0)
    progress.close()
    assert out.getvalue() == (
        "step 20/100  epoch 1.50  loss 0.5000  accuracy 0.7500  rate 0.1  1234 images/s  0:02:40 left\n"
    )


def test_progress_bar_shows_metrics_and_keeps_messages():
    out = io.StringIO()
    progress = ProgressLine(100, first_step=0, bar=True, out=out)
    progress.update(20, epoch=1.5, values=VALUES, seconds_per_step=2.0)
    progress.say("a line that stays")
    progress.close()
    assert " 20%|" in out.getvalue()
    assert "loss 0.5000" in out.getvalue()
    assert "a line that stays\n" in out.getvalue()


def test_metrics_are_means_since_the_last_line(monkeypatch):
    clock = iter([10.0, 14.0, 14.0, 15.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    log = TrainLog(batch_size=8)
    log.add({"loss": 1.0})
    log.add({"loss": 2.0})
    assert log.take() == ({"loss": 1.5, "images_per_second": 4.0}, 2.0)
    log.add({"loss": 5.0})
    assert log.take() == ({"loss": 5.0, "images_per_second": pytest.approx(8.0)}, 1.0)
