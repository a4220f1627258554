package main

import (
	"context"
	"os"

	"go.uber.org/zap"

	"syncd/internal/daemon"
	"syncd/internal/demo"
)

// What the commands start. This file alone knows the packages that do it.

func runDaemon(ctx context.Context, config string, log *zap.Logger, level *zap.AtomicLevel, reload <-chan os.Signal) error {
	return daemon.Run(ctx, daemon.Options{
		ConfigPath: config, Version: thisBuild().Version, Log: log, Level: level, Reload: reload,
	})
}

func runCheck(ctx context.Context, o checkOptions) error {
	return daemon.Check(ctx, daemon.CheckOptions{
		ConfigPath: o.config, Out: o.out, In: o.in, JSON: o.json, Colour: o.colour,
		Strict: o.strict, PrintHost: o.printHost, Compare: o.compare,
	})
}

func runDemo(ctx context.Context, o demoOptions) error {
	return demo.Run(ctx, demo.Options{
		Out: o.out, Plain: o.plain, Connections: o.connections, WithoutOnly: o.withoutOnly,
	})
}
