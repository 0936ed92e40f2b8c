#!/usr/bin/env bash
# Three networks trained on four data sets, from the command line alone, judged at factors that nobody photographed:
#
#     benchmarks/sr_table.sh [WORK] [OUT]        (runs/sr_table; benchmarks)
#
# About a quarter of an hour on one core. Each step goes on where it was. Results: sr_table.txt and sr_table.csv in OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/sr_table} out=${2:-benchmarks}
export OMP_NUM_THREADS=1
interflow() { .venv/bin/interflow "$@" --seed 0; }
networks='rcan swinir liif_edsr_baseline' made='pixels preserving sample'

# what the networks are trained on, and what paths between photographs start from: the flow's own factors
trained=$(.venv/bin/python -c 'import json; print(*json.load(open("data/weights/flow/config.json"))["factors"], sep=",")')
interflow simulate data/photos/train "$work/train" --factors "2.1,3.0,3.75,$trained"
interflow simulate data/photos/test "$work/test" --factors 2.5,3,3.5
for path in $made; do
    interflow generate data/weights/flow "$work/train" "$work/$path" --factors 2.4,2.8,3.2,3.6 --path "$path" --device cpu
done
for network in $networks; do
    interflow train-sr "$work/train" "$work/nets/$network/x2x4" --network "$network" --factors 2.1,3.75 --device cpu
    for path in $made; do
        interflow train-sr "$work/$path" "$work/nets/$network/$path" --network "$network" --device cpu
    done
done

echo 'PSNR and SSIM on Y, means over seven test scenes, with 95 % intervals; differences to the same network trained on x2 and x4' > "$work/table.txt"
for network in $networks; do
    nets=$(for data in x2x4 $made; do echo "$work/nets/$network/$data/model"; done)
    # shellcheck disable=SC2086
    interflow evaluate $nets "$work/test" --rival "$work/nets/$network/x2x4/model" --csv "$work/$network.csv" --device cpu | sed "s#$work/nets/##g; s#/model##g" >> "$work/table.txt"
done
cp "$work/table.txt" "$out/sr_table.txt"
{ head -n 1 "$work/rcan.csv"; for network in $networks; do tail -n +2 "$work/$network.csv" | sed "s#$work/nets/##g; s#/model##g"; done; } > "$out/sr_table.csv"
