-- wrk: reports one JSON line at the end. With an argument, waits between the requests of a connection
-- for a random time whose mean is that many milliseconds.

function init(arguments)
    local mean = tonumber(arguments[1])
    if mean then
        math.randomseed(1)
        delay = function() return math.random(0, 2 * mean) end
    end
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\n{"requests":%d,"bytes":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,'
            .. '"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
        summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
