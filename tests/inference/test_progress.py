"""What the progress bar of a command says."""

import io

from tqdm import tqdm

from c_diffset.inference.progress import InputBar, Passes


def make_bar(total: int) -> tqdm:
    return tqdm(total=total, file=io.StringIO(), mininterval=0)


def test_pixels_without_data_leave_the_total_instead_of_counting_as_done():
    bar = make_bar(3000)
    own = InputBar(bar, "scene.tif", 1000)
    passes = Passes(own, announced=40)  # 10 tiles, 2 steps
    passes.stage("encoding", 10)
    for _ in range(10):
        passes.add(1)
    assert (bar.n, bar.total) == (250, 3000)
    passes.total = 10 + 3 * 2  # two of the tiles hold data
    passes.stage("denoising, step 1 of 2", 2)
    assert (bar.n, bar.total) == (250, 2400) and "scene.tif: denoising, step 1 of 2" in bar.fp.getvalue()
    passes.add(2)
    assert bar.n == 300
    own.close()
    assert (bar.n, bar.total) == (400, 2400)


def test_what_fails_is_no_longer_waited_for():
    bar = make_bar(100)
    own = InputBar(bar, "a.png", 60)
    own("reading", 0, 1)
    own.close()
    assert (bar.n, bar.total) == (60, 100)


def test_a_process_takes_the_others_to_be_as_fast_but_no_faster_than_their_share():
    told = []
    passes = Passes(lambda *now: told.append(now), announced=10, processes=2)
    passes.stage("encoding", 5)
    for _ in range(3):
        passes.add(1)  # three of five tiles are this process's
    passes.stage("decoding", 5)
    assert [done for _, done, _ in told] == [0, 0.2, 0.4, 0.5, 0.5]


def test_the_bar_of_another_process_is_silent():
    own = InputBar(tqdm(total=10, disable=True), "a.png", 10)
    own("reading", 0.5, 0.5)
    own.close()
