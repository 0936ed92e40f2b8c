#!/bin/sh
# From a folder of your own photographs to a network that enlarges them.
#
#     pip install 'interflow-sr[sets,train,metrics]'
#     sh 1_own_photographs.sh PHOTOS OTHERS OUT
#
# PHOTOS are learned from, OTHERS are not. On two cores the defaults take an hour or so.
# STEPS=20 SR_STEPS=20 only shows that all parts work together.
set -e
PHOTOS=$1 OTHERS=$2 OUT=$3

# No pairs yet: a simulated camera photographs the photographs, at x2 and x4. Who has pairs begins with `check`.
interflow simulate "$PHOTOS" "$OUT/pairs" --factors 2,4

# Shifted, exchanged, doubled, mislabelled? Before an hour of training. Exit code 1: warnings, which it prints.
interflow check "$OUT/pairs" || [ $? = 1 ]

# The flow learns from the pairs. It starts from the small one that comes along. A killed run goes on with the same command.
interflow train "$OUT/pairs" "$OUT/flow" --init shipped:flow --steps "${STEPS:-4000}"

# It makes the factors between, which nobody photographed.
interflow generate "$OUT/flow" "$OUT/pairs" "$OUT/made" --factors 2.5,3.5

# A network learns from both. Where a model is wanted, the folder of its run will do.
interflow train-sr "$OUT/pairs" "$OUT/made" "$OUT/net" --network vdsr --steps "${SR_STEPS:-4000}"

# How good is it on other photographs, at a factor that it has never seen?
interflow simulate "$OTHERS" "$OUT/test" --factors 3
interflow evaluate "$OUT/net" "$OUT/test" --csv "$OUT/values.csv"

# Larger pictures.
interflow upscale "$OUT/net" "$OTHERS" "$OUT/large" --factor 3
