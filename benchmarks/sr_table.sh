#!/usr/bin/env bash
# Three networks trained on four data sets, from the command line alone, judged at factors that nobody photographed:
#
#     benchmarks/sr_table.sh [WORK] [OUT]        (runs/sr_table; benchmarks)
#
# About a quarter of an hour of one core: the trainings run side by side, one on each core, with one thread each. The first that fails ends the script.
# Each step goes on where it was. Results: sr_table.txt and sr_table.csv in OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/sr_table} out=${2:-benchmarks}
export OMP_NUM_THREADS=1 work
export tool=$PWD/.venv/bin/interflow
interflow() { "$tool" "$@" --seed 0; }
networks='rcan swinir liif_edsr_baseline' made='pixels preserving sample'

# what the networks are trained on, and what paths between photographs start from: the flow's own factors
trained=$(.venv/bin/python -c 'import json; print(*json.load(open("data/weights/flow/config.json"))["factors"], sep=",")')
interflow simulate data/photos/train "$work/train" --factors "2.1,3.0,3.75,$trained"
interflow simulate data/photos/test "$work/test" --factors 2.5,3,3.5
for path in $made; do
    interflow generate data/weights/flow "$work/train" "$work/$path" --factors 2.4,2.8,3.2,3.6 --path "$path" --device cpu
done

train() {       # a network, on a data set: says what is done, keeps the rest in a log
    local data="$work/$2" place="$work/nets/$1/$2" factors=()
    if [ "$2" = x2x4 ]; then data="$work/train" factors=(--factors 2.1,3.75); fi
    mkdir -p "$work/nets/$1"
    if interflow train-sr "$data" "$place" --network "$1" ${factors[@]+"${factors[@]}"} --device cpu > "$place.log" 2>&1; then
        echo "trained $1 on $2: $(tail -n 1 "$place.log")"
    else
        echo "sr_table.sh: $1 on $2 failed, see $place.log: $(tail -n 1 "$place.log")" >&2
        return 255      # xargs starts no other, and fails
    fi
}
export -f interflow train
for network in $networks; do
    for data in x2x4 $made; do echo "$network $data"; done
done | xargs -n 2 -P "$(getconf _NPROCESSORS_ONLN)" bash -c 'train "$@"' train

echo 'PSNR and SSIM on Y, means over seven test scenes, with 95 % intervals; differences to the same network trained on x2 and x4' > "$work/table.txt"
for network in $networks; do
    # shellcheck disable=SC2086
    (cd "$work/nets" && interflow evaluate $(for data in x2x4 $made; do echo "$network/$data"; done) ../test \
        --rival "$network/x2x4" --measures psnr_y,ssim_y --csv "../$network.csv" --device cpu) >> "$work/table.txt"
done
cp "$work/table.txt" "$out/sr_table.txt"
{ head -n 1 "$work/rcan.csv"; for network in $networks; do tail -n +2 "$work/$network.csv"; done; } > "$out/sr_table.csv"
