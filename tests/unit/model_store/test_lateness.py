"""Training on the flights: fewer rows where a plan says so, and each row with its time."""

import pandas as pd

from model_store.lateness import thinned


def test_thinning_keeps_first_and_last_rows_and_never_adds_any() -> None:
    whole = pd.DataFrame({"dep_delay": range(100)})
    assert thinned(whole, 10)["dep_delay"].tolist() == [11 * at for at in range(10)]
    assert thinned(whole, 1000) is whole
    assert thinned(whole, None) is whole
