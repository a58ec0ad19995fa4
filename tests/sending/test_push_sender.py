"""PushSender, event by event."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface.verify import verifyObject

from cartd.errors import VolumeDamaged
from cartd.sending.sender import ClientDisconnected, PushSender, State
from tests.support.sending import AtOnce, Bytes, Sending, Sink


def test_it_is_a_push_producer() -> None:
    assert verifyObject(IPushProducer, Sending().sender)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in a thread"])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 10])
def test_all_is_written_in_order_and_everything_released(size: int, at_once: bool) -> None:
    sending = Sending(b"abcdefghij"[:size], at_once=at_once)
    sending.start()
    while sending.disk.held:
        sending.assert_open()
        sending.disk.finish()
    sending.assert_sent()


def test_the_states_of_a_download() -> None:
    sending = Sending(b"abcdef")
    sender = sending.sender
    states = [sender.state]
    sending.start()
    states.append(sender.state)
    sending.disk.finish()
    sender.pauseProducing()
    states.append(sender.state)
    sending.disk.finish()
    states.append(sender.state)
    sender.resumeProducing()
    assert [*states, sender.state] == [
        State.WAITING,
        State.WORKING,
        State.WORKING,
        State.ALL_READ,
        State.CLOSED,
    ]


def test_a_download_that_ends_is_closed_when_its_thread_has_returned() -> None:
    sending = Sending()
    sending.start()
    sending.sender.stopProducing()
    states = [sending.sender.state]
    sending.disk.finish()
    assert [*states, sending.sender.state] == [State.ENDING, State.CLOSED]


def test_a_read_that_is_not_filled_is_the_last() -> None:
    sending = Sending(b"abcdefg", at_once=True)
    sending.start()
    assert sending.reader.reads == [4, 4]


def test_a_failed_read_is_the_outcome() -> None:
    sending = Sending(fail_after=1)
    sending.start()
    sending.disk.finish()
    sending.disk.finish()
    sending.assert_failed(VolumeDamaged, unregistered=True)
    assert sending.written == b"abcd"


def test_a_failed_write_is_the_outcome() -> None:
    def fail() -> None:
        raise RuntimeError("finished already")

    sending = Sending()
    sending.sink.on_write = fail
    sending.start()
    sending.disk.finish()
    sending.assert_failed(RuntimeError, unregistered=True)


def test_while_paused_one_chunk_is_read_ahead_and_no_more() -> None:
    sending = Sending()
    sending.start()
    sending.disk.finish()
    assert sending.written == b"abcd"
    sending.sender.pauseProducing()
    sending.disk.finish()
    assert sending.written == b"abcd"
    assert sending.disk.held == []
    assert sending.reader.at == 8
    sending.assert_open()


def test_when_resumed_it_writes_what_it_has_and_reads_on() -> None:
    sending = Sending()
    sending.start()
    sending.sender.pauseProducing()
    sending.disk.finish()
    sending.sender.resumeProducing()
    assert sending.written == b"abcd"
    sending.disk.finish()
    sending.disk.finish()
    sending.assert_sent()


def test_when_resumed_during_a_read_it_does_not_start_another() -> None:
    sending = Sending()
    sending.start()
    sending.sender.pauseProducing()
    sending.sender.resumeProducing()
    assert len(sending.disk.held) == 1
    sending.disk.finish()
    assert sending.written == b"abcd"


def test_a_pause_during_a_write_holds_the_next_chunk_back() -> None:
    sending = Sending(at_once=True)
    sending.sink.on_write = sending.sender.pauseProducing
    sending.start()
    assert sending.sink.written == [b"abcd"]
    sending.sender.resumeProducing()
    assert sending.sink.written == [b"abcd", b"efgh"]
    sending.sender.resumeProducing()
    assert sending.sink.written == [b"abcd", b"efgh", b"ij"]
    sending.sender.resumeProducing()
    sending.assert_sent()


def test_it_has_not_sent_all_before_the_last_chunk_is_taken() -> None:
    sending = Sending(b"abc", at_once=True)
    sending.sink.on_write = sending.sender.pauseProducing
    sending.start()
    assert sending.written == b"abc"
    assert sending.outcomes == [] and sending.sink.producer is not None
    sending.sender.resumeProducing()
    sending.assert_sent()


def test_a_pause_and_a_resume_during_a_write_keep_the_order() -> None:
    sending = Sending(at_once=True)

    def shake() -> None:
        sending.sender.pauseProducing()
        sending.sender.resumeProducing()

    sending.sink.on_write = shake
    sending.start()
    assert sending.sink.written == [b"abcd", b"efgh", b"ij"]
    sending.assert_sent()


def test_when_stopped_it_closes_and_writes_no_more() -> None:
    sending = Sending()
    sending.start()
    sending.sender.pauseProducing()
    sending.disk.finish()
    sending.sender.stopProducing()
    sending.assert_failed(ClientDisconnected, unregistered=False)
    sending.sender.resumeProducing()
    assert sending.written == b"" and sending.disk.held == []


def test_a_stop_during_a_read_closes_when_the_thread_is_done() -> None:
    sending = Sending()
    sending.start()
    sending.sender.stopProducing()
    sending.assert_open()
    sending.disk.finish()
    sending.assert_failed(ClientDisconnected, unregistered=False)
    assert sending.written == b""


def test_a_read_that_fails_after_the_stop_changes_nothing() -> None:
    sending = Sending(fail_after=0)
    sending.start()
    sending.sender.stopProducing()
    sending.disk.finish()
    sending.assert_failed(ClientDisconnected, unregistered=False)


def test_a_stop_during_a_write_ends_it() -> None:
    sending = Sending(at_once=True)
    sending.sink.on_write = sending.sender.stopProducing
    sending.start()
    sending.assert_failed(ClientDisconnected, unregistered=False)
    assert sending.written == b"abcd"


def test_a_disconnected_consumer_stops_it_before_the_first_read() -> None:
    sending = Sending(at_once=True)
    sending.sink.on_register = lambda: sending.sender.stopProducing()
    sending.start()
    sending.assert_failed(ClientDisconnected, unregistered=False)
    assert sending.reader.reads == []


def test_stopping_twice_is_stopping_once() -> None:
    sending = Sending()
    sending.start()
    sending.sender.stopProducing()
    sending.sender.stopProducing()
    sending.disk.finish()
    sending.sender.stopProducing()
    sending.assert_failed(ClientDisconnected, unregistered=False)


def test_stopping_after_the_end_changes_nothing() -> None:
    sending = Sending(at_once=True)
    sending.start()
    sending.sender.stopProducing()
    sending.assert_sent()


def test_a_cancel_unregisters_and_closes() -> None:
    sending = Sending()
    done = sending.start()
    sending.sender.pauseProducing()
    sending.disk.finish()
    done.cancel()
    sending.assert_failed(ClientDisconnected, unregistered=True)


def test_a_cancel_during_a_read_unregisters_at_once() -> None:
    sending = Sending()
    done = sending.start()
    done.cancel()
    sending.assert_open()
    assert sending.sink.producer is None
    done.cancel()
    sending.assert_open()
    sending.disk.finish()
    sending.assert_failed(ClientDisconnected, unregistered=True)


def test_a_cancel_after_a_stop_waits_for_the_thread() -> None:
    sending = Sending()
    done = sending.start()
    sending.sender.stopProducing()
    done.cancel()
    sending.assert_open()
    sending.disk.finish()
    sending.assert_failed(ClientDisconnected, unregistered=False)


def test_a_cancelled_coroutine_resumes_when_the_reader_is_closed() -> None:
    sending = Sending()
    closed: list[int] = []

    async def download() -> None:
        try:
            await sending.sender.start()
        finally:
            closed.append(sending.reader.closed)

    done = Deferred.fromCoroutine(download())
    done.addErrback(lambda failure: failure.trap(ClientDisconnected))
    done.cancel()
    assert closed == []
    sending.disk.finish()
    assert closed == [1]


def test_the_size_of_the_chunk_is_asked_before_each_read() -> None:
    limits = iter([2, 3, 5, 7])
    sink, reader = Sink(), Bytes(b"abcdefghij")
    PushSender(reader, AtOnce(), sink, lambda: next(limits)).start()
    assert reader.reads == [2, 3, 5, 7]
    assert sink.written == [b"ab", b"cde", b"fghij"]


def test_reads_that_are_done_at_once_do_not_nest() -> None:
    sending = Sending(bytes(40_000), at_once=True)
    sending.start()
    sending.assert_sent()
