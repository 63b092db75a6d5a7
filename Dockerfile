# semisup on the CPU: `docker build -t semisup .`, then, without a network and with the results in ./runs,
#   docker run --rm --network none -v "$PWD/runs:/work/runs" semisup                     # the demo
#   docker run --rm --network none -v "$PWD/runs:/work/runs" -v "$PWD/photos:/work/photos:ro" \
#     semisup predict runs/digits-quickstart/student photos --out runs/predictions.csv
FROM python:3.12-slim

# OpenCV, which albumentations computes with, needs glib; the CPU's torch is a tenth of the GPU's.
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends libglib2.0-0 libgl1 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir '/src[onnx]' && rm -rf /src

# Nobody in particular may write the results: docker run --user "$(id -u):$(id -g)" makes them one's own.
ENV HOME=/tmp MPLCONFIGDIR=/tmp
WORKDIR /work
RUN mkdir -m 777 runs
ENTRYPOINT ["semisup"]
CMD ["run", "digits/quickstart"]
