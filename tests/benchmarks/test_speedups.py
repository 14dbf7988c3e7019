from __future__ import annotations

from benchmarks import speedups
from segonnx.bench.result import Ratio, Result, Row

SHAPE = (1, 3, 64, 64)
MEDIANS = {"eager": 4.0, "compile": 2.0, "ort": 1.0, "ort-stock": 1.5, "openvino-stock": 0.5}


def result() -> Result:
    rows = [
        Row(
            "net",
            "2d",
            name,
            10,
            10**9,
            SHAPE,
            "",
            1.0,
            threads=2,
            rounds=[[seconds]],
            peak_rss_bytes=int(seconds * 1e9),
            memory_bytes=3_000_000,
        )
        for name, seconds in MEDIANS.items()
    ]
    names = list(MEDIANS)
    ratios = []
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            times = MEDIANS[a] / MEDIANS[b]
            ratios.append(Ratio("net", SHAPE, 2, a, b, times, (0.9 * times, 1.25 * times), None, 5, True))
    machine = {"cpu": "some CPU", "flags": ["avx2"], "versions": {"onnxruntime": "1", "openvino": "2", "torch": "3"}}
    peaks = [{"threads": 2, "sgemm_gflops": 4.0, "bandwidth_gb_s": 1.0}]
    return Result(machine, "off", rows, ratios=ratios, roofline_peaks=peaks)


def test_ratios_are_the_others_time_over_ours_whichever_way_they_were_kept() -> None:
    line = speedups.table(result()).splitlines()[-1]
    assert line == (
        "| net |  | 1000.0 | 1.50x (1.20-1.67) | 2.00x (1.80-2.50) compile | 0.50x (0.40-0.56) | 0.67 | 2, 0.50 | 3.0 |"
    )


def test_what_failed_is_left_out() -> None:
    one = result()
    one.rows = [row for row in one.rows if row.backend not in ("compile", "ort-stock")]
    one.ratios = [ratio for ratio in one.ratios if "ort-stock" not in (ratio.baseline, ratio.backend)]
    line = speedups.table(one).splitlines()[-1]
    assert line.startswith("| net |  | 1000.0 | - | 4.00x (3.60-5.00) eager | 0.50x")
    one.rows[1].status = "failed"
    one.rows[1].rounds = []
    assert speedups.table(one).splitlines()[-1].startswith("| net |  | failed | ")


def test_a_runtime_whose_logits_differ_is_marked() -> None:
    one = result()
    one.rows[-1].status = "its logits differ"
    *_, line, empty, note = speedups.table(one).splitlines()
    assert "| 0.50x (0.40-0.56) † |" in line
    assert not empty
    assert note.startswith("† its logits differ")
    assert "†" not in speedups.table(result())


def test_rounds_under_one_cache_and_under_two_have_lines_of_their_own() -> None:
    one = result()
    for row in one.rows:
        # Our times double where the processors share no cache; the others keep theirs.
        near, far = MEDIANS[row.backend], MEDIANS[row.backend] * (2 if row.backend == "ort" else 1)
        row.rounds = [[near]] * 4 + [[far]] * 3 + [[50.0]]
        row.core_latency_ns = [90.0, 88.0, 91.0, 90.0, 165.0, 160.0, 170.0, 165.0 if row.backend == "ort" else 90.0]
    under_one, under_two = speedups.table(one).splitlines()[-2:]
    assert under_one.startswith("| net | one | 1000.0 | 1.50x | 2.00x compile | 0.50x |")
    assert under_two.startswith("| net | two | 2000.0 | 0.75x | 1.00x compile | 0.25x |")


def test_all_rounds_take_the_place_of_a_side_with_few() -> None:
    one = result()
    for row in one.rows:
        row.rounds = [[MEDIANS[row.backend]]] * 6
        row.core_latency_ns = [90.0] * 4 + [165.0] * 2
    assert [line.split(" | ")[1] for line in speedups.table(one).splitlines() if "net" in line] == ["one", "either"]


def test_a_side_has_no_line_where_it_has_too_few_rounds_of_the_stock_graph() -> None:
    one = result()
    for row in one.rows:
        row.rounds = [[MEDIANS[row.backend]]] * 8
        row.core_latency_ns = [90.0] * 4 + [165.0] * 4
    stock = next(row for row in one.rows if row.backend == "ort-stock")
    stock.core_latency_ns = [90.0] * 8
    assert [line.split(" | ")[1] for line in speedups.table(one).splitlines() if "net" in line] == ["one", "either"]


def test_a_network_of_few_rounds_has_one_line() -> None:
    one = result()
    for row in one.rows:
        row.rounds = [[MEDIANS[row.backend]]] * 4
        row.core_latency_ns = [90.0] * 2 + [165.0] * 2
    (line,) = (line for line in speedups.table(one).splitlines() if "net" in line)
    assert line.startswith("| net | either | 1000.0 | 1.50x (1.20-1.67) |")
