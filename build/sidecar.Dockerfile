# The same image as make images builds, for those who have a container engine:
# docker build -f build/sidecar.Dockerfile .
FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /sidecar ./cmd/sidecar

FROM scratch
COPY --from=build /sidecar /sidecar
USER 65532:65532
ENTRYPOINT ["/sidecar"]
