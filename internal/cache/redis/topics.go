package redis

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/rueidis"

	store "github.com/spillway/spillway/internal/store/redis"
)

// Topic is a question and how much it is asked for.
type Topic struct {
	Model    string
	Question string
	Demand   float64 // requests since the last call of Topics
}

// Bounds of the set of hot topics.
const (
	longestTopic = 120       // bytes of a member
	halfLife     = time.Hour // of the demand
	leastDemand  = 0.01      // what is below is forgotten
)

// rank adds demand to a capped set whose scores halve with time. How much time has
// passed since it was last written shows in what is left of its life. ARGV: its life
// and the half-life in milliseconds, its cap, the least score, then scores and members.
const rank = `local left = redis.call('PTTL', KEYS[1])
if left > 0 then
	redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', 0.5 ^ (math.max(0, ARGV[1] - left) / ARGV[2]))
end
for i = 5, #ARGV, 2 do
	redis.call('ZINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[4])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[3] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1`

// Topics adds a window's demand, of this gateway, to the hot topics. As many topics
// are kept as recent questions, over all gateways; with questions switched off, none.
func (l *Level) Topics(ctx context.Context, topics []Topic) error {
	topics = slices.DeleteFunc(slices.Clone(topics), func(t Topic) bool { return !(t.Demand > 0) || math.IsInf(t.Demand, 1) })
	slices.SortStableFunc(topics, func(a, b Topic) int { return cmp.Compare(b.Demand, a.Demand) })
	topics = topics[:min(len(topics), l.questions, mostListed)]
	if len(topics) == 0 {
		return nil
	}
	args := []string{
		milliseconds(listLife), milliseconds(halfLife), strconv.Itoa(l.questions), strconv.FormatFloat(leastDemand, 'g', -1, 64),
	}
	for _, t := range topics {
		args = append(args, strconv.FormatFloat(t.Demand, 'g', -1, 64), t.member())
	}
	_, err := store.Do(ctx, l.client, func(ctx context.Context, r rueidis.Client) (struct{}, error) {
		return struct{}{}, r.Do(ctx, r.B().Eval().Script(rank).Numkeys(1).Key(l.name+"topics").Arg(args...).Build()).Error()
	})
	if err != nil {
		return fmt.Errorf("rank %d topics in Redis: %w", len(topics), err)
	}
	return nil
}

// member is the topic as text, cut between two characters.
func (t Topic) member() string {
	s := strings.ToValidUTF8(t.Model+": "+t.Question, "\uFFFD")
	if len(s) <= longestTopic {
		return s
	}
	n := longestTopic
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
