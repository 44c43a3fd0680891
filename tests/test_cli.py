import time

from vggvox_tf import cli


def test_progress_tells_the_time_left_by_the_rate_since_the_first_batch(monkeypatch, caplog):
    """The first 100 take 60 s, most of them for making the model ready, and do not count; the next 200 take 20 s, so
    that the other 700 take 70 s. A call 5 s later says nothing."""
    clock = iter([0.0, 60.0, 80.0, 85.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: False)
    caplog.set_level("INFO")
    progress = cli.show_progress(1_000)
    for done in (100, 300, 350):
        progress(done)
    assert caplog.messages == [
        "100 of 1,000 recordings embedded",
        "300 of 1,000 recordings embedded, about 1 min 10 s left",
    ]
