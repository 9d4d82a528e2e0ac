"""What to do about errors of torch that do not say it."""


def advice(error: BaseException, channels_last: bool) -> str:
    """What a user can do about an error in a step of the model, to be put after its message; empty
    where unknown.

    Args:
        error: An error in the model's own step.
        channels_last: Whether its images lay in that format.
    """
    text = str(error)
    if "Expected more than 1 value per channel when training" in text:
        return (
            "; BatchNorm cannot train on a batch of one sample: data.drop_last: true leaves small "
            "last batches out, where data.batch_size is at least 2 and each client has 2 samples"
        )
    formats = ("view size is not compatible", "is_contiguous", "contiguous(", "channels_last")
    if channels_last and any(words in text for words in formats):
        return "; images lie in channels_last here: set trainer.channels_last: false"
    return ""
