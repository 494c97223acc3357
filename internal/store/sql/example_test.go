package sql_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
)

func ExampleOpen() {
	dir, _ := os.MkdirTemp("", "example-")
	defer os.RemoveAll(dir)
	words := sql.Migrations{Name: "words", Steps: []sql.Step{func(sql.Dialect) (list []string) {
		for n := range sql.Shards {
			list = append(list, "CREATE TABLE IF NOT EXISTS "+sql.Table("words", n)+" (word VARCHAR(100) NOT NULL PRIMARY KEY, n INTEGER NOT NULL)")
		}
		return list
	}}}
	store, err := sql.Open(sql.Default(), dir, testkit.Discard(), words)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- store.Run(ctx) }()

	shard := store.Shard(3)
	n := 0
	read := func(ctx context.Context, c *sql.Conn) error {
		return c.NewSelect().TableExpr(shard.Table("words")).ColumnExpr("n").Where("word = ?", "water").Scan(ctx, &n)
	}
	fmt.Println(errors.Is(shard.Read(ctx, read), sql.ErrAbsent))

	err = shard.Write(ctx, func(ctx context.Context, c *sql.Conn) error {
		text := "INSERT INTO " + shard.Table("words") + " (word, n) VALUES (?, ?)" + shard.Dialect().Upsert("word", "n")
		_, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind(text), "water", 7)
		return err
	})
	fmt.Println(err)
	err = shard.Read(ctx, read)
	fmt.Println(n, err)
	stop()
	fmt.Println(<-done)
	// Output:
	// true
	// <nil>
	// 7 <nil>
	// <nil>
}

func ExampleDialect() {
	for _, d := range []sql.Dialect{sql.SQLite, sql.Postgres, sql.MySQL} {
		fmt.Println(d, d.Bind("INSERT INTO t (a, b) VALUES (?, ?)")+d.Upsert("a", "b"))
	}
	// Output:
	// sqlite INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET b = EXCLUDED.b
	// postgres INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = EXCLUDED.b
	// mysql INSERT INTO t (a, b) VALUES (?, ?) ON DUPLICATE KEY UPDATE b = VALUES(b)
}
