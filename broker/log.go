package broker

import (
	"io"
	"strings"

	"github.com/rs/zerolog"
	"k8s.io/klog/v2"
)

// NewLogger makes the program's one logger: lines of JSON. The Kubernetes
// libraries log through it as well, at their lowest verbosity: higher ones show
// headers.
func NewLogger(to io.Writer, level string) zerolog.Logger {
	parsed, err := zerolog.ParseLevel(level)
	if err != nil {
		parsed = zerolog.InfoLevel
	}
	log := zerolog.New(to).Level(parsed).With().Timestamp().Logger()
	klog.LogToStderr(false)
	klog.SetOutput(klogWriter{log})
	return log
}

type klogWriter struct{ log zerolog.Logger }

func (w klogWriter) Write(line []byte) (int, error) {
	w.log.Debug().Str("from", "client-go").Msg(strings.TrimSpace(string(line)))
	return len(line), nil
}
