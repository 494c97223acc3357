package dns_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/dns"
)

func Example() {
	cfg := dns.Default()
	cfg.Name, cfg.Port = "127.0.0.1", 8000
	ctx, stop := context.WithCancel(context.Background())
	_ = dns.New(cfg, slog.New(slog.DiscardHandler)).Run(ctx, func(targets []fleet.Target) {
		fmt.Println(targets[0].URL)
		stop()
	})
	// Output: http://127.0.0.1:8000
}
