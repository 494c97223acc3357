/* answer.h: reads one HTTP answer as it arrives and checks every byte that can be known: the status, the coding, the
 * completion's bytes, or the stream's 64 events in order, its [DONE] and its proper end. */
#ifndef ANSWER_H
#define ANSWER_H

#include "rig.h"

enum coding { UNTIL_CLOSE, LENGTH, CHUNKED };
enum verdict { MORE, DONE, BROKEN, REFUSED }; /* REFUSED: a whole head with another status than 200 */

struct answer {
  int in_body, status, close_after, stream;
  enum coding coding;
  long left;    /* bytes of the body (LENGTH) or of the chunk (CHUNKED; -1: at a size line, -2: after the last chunk) */
  long body;    /* bytes of the body so far */
  int next;     /* index of the next event */
  int done;     /* [DONE] came */
  size_t part;  /* bytes of an incomplete event in ev */
  char ev[EVENT_MAX * 2];
};

/* on_event is told every event's index and its stamp. */
typedef void on_event(void *who, int index, int64_t stamp);

static inline void answer_reset(struct answer *a, int stream) {
  memset(a, 0, offsetof(struct answer, ev));
  a->stream = stream;
}

static inline int event_check(struct answer *a, const char *p, size_t n, on_event *tell, void *who) {
  if (n && p[0] == ':') return 0; /* a comment, e.g. keep-alive */
  if (n == 12 && !memcmp(p, "data: [DONE]", 12)) {
    a->done++;
    return a->next == EVENTS && a->done == 1 ? 0 : -1;
  }
  const char *m = memmem(p, n, STAMP_MARK, sizeof STAMP_MARK - 1);
  if (!m || (size_t)(p + n - m) < sizeof STAMP_MARK - 1 + 3 + STAMP_DIGITS) return -1;
  m += sizeof STAMP_MARK - 1;
  int index = (m[0] - '0') * 10 + (m[1] - '0');
  int64_t stamp = 0;
  for (int i = 0; i < STAMP_DIGITS; i++) stamp = stamp * 10 + (m[3 + i] - '0');
  if (index != a->next) return -1;
  a->next++;
  tell(who, index, stamp);
  return 0;
}

/* complete appends to the event an earlier read cut, as far as its end, and checks it once whole. It returns the bytes
 * taken, -1 for a wrong event. */
static inline long complete(struct answer *a, const char *p, size_t n, on_event *tell, void *who) {
  const char *sep = memmem(p, n, "\n\n", 2);
  size_t take = a->ev[a->part - 1] == '\n' && p[0] == '\n' ? 1 : sep ? (size_t)(sep + 2 - p) : n;
  if (a->part + take > sizeof a->ev) return -1;
  memcpy(a->ev + a->part, p, take);
  a->part += take;
  if (a->part < 2 || memcmp(a->ev + a->part - 2, "\n\n", 2)) return (long)take;
  size_t len = a->part - 2;
  a->part = 0;
  return len && event_check(a, a->ev, len, tell, who) < 0 ? -1 : (long)take;
}

/* payload takes n > 0 bytes of the decoded body. */
static inline int payload(struct answer *a, const char *p, size_t n, on_event *tell, void *who) {
  static char canned[JSON_BODY_LEN];
  if (!canned[0]) json_body(canned);
  long at = a->body;
  a->body += (long)n;
  if (!a->stream) return a->body <= JSON_BODY_LEN && !memcmp(canned + at, p, n) ? 0 : -1;
  const char *end = p + n, *sep;
  if (a->part) {
    long took = complete(a, p, n, tell, who);
    if (took < 0) return -1;
    p += took;
    if (a->part) return 0;
  }
  while ((sep = memmem(p, (size_t)(end - p), "\n\n", 2))) {
    if (sep != p && event_check(a, p, (size_t)(sep - p), tell, who) < 0) return -1;
    p = sep + 2;
  }
  a->part = (size_t)(end - p);
  if (a->part > sizeof a->ev) return -1;
  memcpy(a->ev, p, a->part);
  return 0;
}

static inline int whole(const struct answer *a) {
  return a->stream ? a->next == EVENTS && a->done == 1 && a->part == 0 : a->body == JSON_BODY_LEN;
}

static inline enum verdict head_read(struct answer *a, const char *p, const char *end) {
  if (strncmp(p, "HTTP/1.", 7)) return BROKEN;
  a->status = atoi(p + 9);
  const char *v = HEADER(p, end, "connection");
  a->close_after = v && !strncasecmp(v, "close", 5);
  if ((v = HEADER(p, end, "transfer-encoding")) && !strncasecmp(v, "chunked", 7)) a->coding = CHUNKED, a->left = -1;
  else if ((v = HEADER(p, end, "content-length"))) a->coding = LENGTH, a->left = atol(v);
  else a->coding = UNTIL_CLOSE;
  a->in_body = 1;
  return a->status == 200 ? MORE : REFUSED;
}

/* chunk_line reads a size line or the end of the coding at p; *used is 0 while the line is incomplete. */
static inline enum verdict chunk_line(struct answer *a, const char *p, size_t n, size_t *used) {
  const char *nl = memchr(p, '\n', n);
  *used = 0;
  if (!nl) return n > 64 ? BROKEN : MORE;
  *used = (size_t)(nl + 1 - p);
  if (a->left == -2) return *used == 2 ? (whole(a) ? DONE : BROKEN) : MORE; /* trailers are skipped */
  if (*used == 2) return MORE;                                            /* the line end after a chunk */
  a->left = strtol(p, NULL, 16);
  if (a->left == 0) a->left = -2;
  return MORE;
}

/* answer_feed consumes what it can of the n bytes at p and sets *used. */
static inline enum verdict answer_feed(struct answer *a, const char *p, size_t n, size_t *used, on_event *tell, void *who) {
  const char *start = p, *end = p + n;
  *used = 0;
  if (!a->in_body) {
    const char *e = memmem(p, n, "\r\n\r\n", 4);
    if (!e) return MORE;
    p = e + 4;
    enum verdict v = head_read(a, start, p);
    *used = (size_t)(p - start);
    if (v != MORE) return v;
  }
  while (p < end) {
    if (a->coding == CHUNKED && a->left < 0) {
      size_t k;
      enum verdict v = chunk_line(a, p, (size_t)(end - p), &k);
      p += k;
      *used = (size_t)(p - start);
      if (v != MORE || k == 0) return v;
      continue;
    }
    size_t k = (size_t)(end - p);
    if (a->coding != UNTIL_CLOSE && k > (size_t)a->left) k = (size_t)a->left;
    if (payload(a, p, k, tell, who) < 0) return BROKEN;
    p += k;
    *used = (size_t)(p - start);
    if (a->coding == UNTIL_CLOSE) continue;
    a->left -= (long)k;
    if (a->left > 0) return MORE;
    if (a->coding == LENGTH) return whole(a) ? DONE : BROKEN;
    a->left = -1;
  }
  return MORE;
}

#endif
