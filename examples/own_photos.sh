#!/usr/bin/env bash
# From a folder of pictures to a model that other programs run: init, run, report, distill, export to 8 bits, predict.
#
#   examples/own_photos.sh WORKPLACE [MINUTES [STEPS]]
#
# The pictures are Debian's stamps (apt-get install tuxpaint-stamps-default), six kinds of them, 12 labels each. With 10
# minutes of training and 1,000 steps of the student it takes less than 20 minutes of two idle cores. Wants semisup[onnx].
set -euo pipefail
workplace=$1 minutes=${2:-10} steps=${3:-1000}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$workplace" && cd "$workplace"

# 1. Pictures in folders: photos/labeled/CLASS, photos/unlabeled, photos/test/CLASS. With your own, begin at 2.
[ -d photos ] || { python "$here/../benchmarks/init_folders.py" . --only stamps --build && mv stamps photos; }

# 2. Look at them, and write a recipe that fits them and this machine.
semisup init photos --minutes "$minutes" --cache cache --force

# 3. Train. What came of it is on one page, runs/photos/report.html.
semisup run photos.yaml tracking.mlflow=false
semisup report runs/photos

# 4. A smaller network that predicts the same.
semisup distill runs/photos/best --student cnn,width=16 --steps "$steps" --out runs/small

# 5. For other programs: ONNX in 32 and in 8 bits, each compared with torch on real images.
semisup export runs/small/student_cnn_width_16 small.onnx --int8

# 6. Predict with onnxruntime alone: no torch, no semisup.
python "$here/onnx_predict.py" small-int8.onnx photos/test/*/*.png > predictions.csv
head -n 4 predictions.csv
