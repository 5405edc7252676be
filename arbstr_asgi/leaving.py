"""What to do with a provider's reply now that its client has left."""

from enum import Enum

from arbstr_asgi.config.provider import Drain


class DisconnectAction(Enum):
    """The choices."""

    NOTHING = "the client has had everything"
    END_SOON = "the client has had everything that counts; don't wait long for the provider to end"
    DRAIN = "read on to the usage"
    CANCEL = "close the reply at once"


def disconnect_action(
    *, complete: bool, done: bool, held: bool, answered: bool, streaming: bool, drain: Drain | None, room: bool
) -> DisconnectAction:
    """Decide by the moment, the provider's policy and its caps.

    `complete`: the end of the reply has been handed to the server. `done`: `[DONE]` has come. `held`: all has come,
    but its end waits for its row. `answered`: the provider has answered. `room`: there is a place left to drain.
    """
    if held:
        return DisconnectAction.CANCEL
    if complete:
        return DisconnectAction.NOTHING
    if done:  # SDKs close here
        return DisconnectAction.END_SOON
    worth_reading = answered or not streaming  # a plain call is worked on, and paid, in any case
    return DisconnectAction.DRAIN if worth_reading and drain is not None and room else DisconnectAction.CANCEL
