package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// newLogger returns the logger of the daemon: lines for people on w. For journald
// it leaves out the time, which that adds itself, and puts the priority before
// the line in the form that journald understands (sd-daemon(3)).
func newLogger(w io.Writer, level zap.AtomicLevel, journald bool) *zap.Logger {
	c := zapcore.EncoderConfig{
		LevelKey: "level", NameKey: "logger", MessageKey: "msg", ConsoleSeparator: " ",
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeDuration: zapcore.StringDurationEncoder,
		EncodeName: zapcore.FullNameEncoder,
	}
	if journald {
		c.EncodeLevel = encodePriority
	} else {
		c.TimeKey, c.EncodeTime = "time", zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
	}
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(c), zapcore.Lock(zapcore.AddSync(w)), level))
}

// priorityError before a line makes it an error in the journal.
const priorityError = "<3>"

// encodePriority writes the priority of syslog(3) for a level.
func encodePriority(l zapcore.Level, enc zapcore.PrimitiveArrayEncoder) {
	priority := 2 // critical
	switch l {
	case zapcore.DebugLevel:
		priority = 7
	case zapcore.InfoLevel:
		priority = 6
	case zapcore.WarnLevel:
		priority = 4
	case zapcore.ErrorLevel:
		priority = 3
	}
	enc.AppendString(fmt.Sprintf("<%d>%s", priority, l))
}

// underJournald reports whether standard error goes to journald, which names its
// device and inode in JOURNAL_STREAM. Programs inherit the variable also when
// their output then goes elsewhere, so both must agree (systemd.exec(5)).
func underJournald() bool {
	var st unix.Stat_t
	if unix.Fstat(int(os.Stderr.Fd()), &st) != nil {
		return false
	}
	return strings.TrimSpace(os.Getenv("JOURNAL_STREAM")) == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
