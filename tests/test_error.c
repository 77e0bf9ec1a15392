/* Every thread has its own message, however long the text it was made from. */
#include <pthread.h>
#include <string.h>

#include "error.h"
#include "expect.h"

static void *other_thread(void *unused) {
    (void)unused;
    EXPECT(!*tallow_last_error(), "%s", tallow_last_error());
    tallow_fail(TALLOW_UNSUPPORTED, "from %s", "another thread");
    EXPECT(!strcmp(tallow_last_error(), "from another thread"), "%s", tallow_last_error());
    return NULL;
}

int main(void) {
    static char text[100000];
    pthread_t thread;
    EXPECT(tallow_fail(TALLOW_DEVICE_ERROR, "%d", 7) == TALLOW_DEVICE_ERROR, "%s", "status");
    EXPECT(!pthread_create(&thread, NULL, other_thread, NULL), "%s", "no thread");
    pthread_join(thread, NULL);
    EXPECT(!strcmp(tallow_last_error(), "7"), "%s", tallow_last_error());

    memset(text, 'x', sizeof text - 1);
    tallow_fail(TALLOW_COMPILE_FAILED, "log: %s", text);
    const size_t length = strlen(tallow_last_error());
    EXPECT(length > 1000 && length < sizeof text && !strncmp(tallow_last_error(), "log: xxx", 8),
           "%zu bytes", length);
    tallow_clear_error();
    EXPECT(!*tallow_last_error(), "%s", tallow_last_error());
    return expect_report();
}
