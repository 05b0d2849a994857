-- Who asks, and whether they may: the first decision of the edge, in its chain only when authentication is on.
-- The lines before these are written by auth.py: CLIENTS, one for each API key: {name, scopes, digest}; USE, words about
-- what to send; FORWARDS, whether other nodes have to be told the credentials. The filter behind this one refuses
-- whatever lacks the mark `passed`, so an error in here lets nobody in.

local bit = require("bit")
local band, bnot, bor, bxor, ror, shr, tobit = bit.band, bit.bnot, bit.bor, bit.bxor, bit.ror, bit.rshift, bit.tobit

local LONGEST_KEY_BYTES = 256
local LONGEST_NAME_BYTES = 128 -- in the access log

-- Health of the node itself. That of a model tells which models there are.
local OPEN = {
  ["/v2/health/live"] = true,
  ["/v2/health/ready"] = true,
  ["/inference.GRPCInferenceService/ServerLive"] = true,
  ["/inference.GRPCInferenceService/ServerReady"] = true,
  ["/grpc.health.v1.Health/Check"] = true,
  ["/grpc.health.v1.Health/Watch"] = true,
}

-- Everything that is in neither list needs the scope `infer`.
local SCOPES = {
  {"^/explanations/", "explain"},
  {"^/v2/models/[^/]+/explain$", "explain"},
  {"^/v2/models/[^/]+/versions/[^/]+/explain$", "explain"},
  {"^/feedback$", "feedback"},
  {"^/feedback/", "feedback"},
}

local function scope_of(path)
  for _, each in ipairs(SCOPES) do
    if path:find(each[1]) then return each[2] end
  end
  return "infer"
end

-- SHA-256 (FIPS 180-4). The constants are the first 32 bits of the fractional parts of the square roots of the first 8
-- primes, and of the cube roots of the first 64.
local ROUNDS, START = {}, {}
do
  local function fraction(root)
    return tobit(math.floor((root - math.floor(root)) * 2 ^ 32))
  end
  local number = 2
  while #ROUNDS < 64 do
    local prime = true
    for divisor = 2, math.floor(math.sqrt(number)) do
      if number % divisor == 0 then prime = false end
    end
    if prime then
      if #START < 8 then START[#START + 1] = fraction(math.sqrt(number)) end
      ROUNDS[#ROUNDS + 1] = fraction(number ^ (1 / 3))
    end
    number = number + 1
  end
end

local function sha256(text)
  local zeros = (55 - #text) % 64
  text = text .. "\128" .. ("\0"):rep(zeros + 4)
  local bits = (#text - zeros - 5) * 8
  text = text .. string.char(shr(bits, 24), band(shr(bits, 16), 255), band(shr(bits, 8), 255), band(bits, 255))
  local sum, w = {unpack(START)}, {}
  for block = 1, #text, 64 do
    for i = 1, 16 do
      local one, two, three, four = text:byte(block + 4 * i - 4, block + 4 * i - 1)
      w[i] = tobit(one * 16777216 + two * 65536 + three * 256 + four)
    end
    for i = 17, 64 do
      local x, y = w[i - 15], w[i - 2]
      local s0 = bxor(ror(x, 7), ror(x, 18), shr(x, 3))
      local s1 = bxor(ror(y, 17), ror(y, 19), shr(y, 10))
      w[i] = tobit(w[i - 16] + s0 + w[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, h = unpack(sum)
    for i = 1, 64 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local t1 = tobit(h + s1 + bxor(band(e, f), band(bnot(e), g)) + ROUNDS[i] + w[i])
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local t2 = tobit(s0 + bxor(band(a, b), band(a, c), band(b, c)))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    for i, each in ipairs({a, b, c, d, e, f, g, h}) do sum[i] = tobit(sum[i] + each) end
  end
  return sum
end

-- The client whose key this is. Every word of every digest is compared, so the time tells nothing about any of them.
local function client_of(key)
  if #key > LONGEST_KEY_BYTES then return nil end
  local digest, found = sha256(key), nil
  for _, client in ipairs(CLIENTS) do
    local difference = 0
    for i = 1, 8 do difference = bor(difference, bxor(digest[i], client.digest[i])) end
    if difference == 0 then found = client end
  end
  return found
end

-- A token's scopes: `scope` separated by spaces (RFC 8693), or `scp`, which some issuers write as a list.
local function scopes_of(claims)
  local said, scopes = claims.scope or claims.scp, {}
  if type(said) == "string" then
    for scope in said:gmatch("%S+") do scopes[scope] = true end
  elseif type(said) == "table" then
    for _, scope in pairs(said) do
      if type(scope) == "string" then scopes[scope] = true end
    end
  end
  return scopes
end

-- The caller's name and scopes, or nil with words about what was wrong with the credentials, if there were any.
local function caller(metadata, key, authorization)
  local bearer = authorization and authorization:match("^[Bb]earer +(%S+)$")
  if key == nil and bearer ~= nil and not bearer:find(".", 1, true) then key = bearer end
  if key ~= nil then
    local client = client_of(key)
    if client == nil then return nil, nil, "the API key is not one of those that this node knows" end
    return "key:" .. client.name, client.scopes
  end
  if bearer == nil then return nil, nil, nil end
  local token = metadata:get("envoy.filters.http.jwt_authn")
  if token ~= nil and token.claims ~= nil then
    local subject = type(token.claims.sub) == "string" and token.claims.sub or "?"
    return "token:" .. subject:sub(1, LONGEST_NAME_BYTES), scopes_of(token.claims)
  end
  local reason = token ~= nil and token.failed ~= nil and token.failed.message or "no issuer is trusted here"
  return nil, nil, "the token is not accepted: " .. reason
end

local function refuse(handle, status, challenge, words)
  handle:respond({[":status"] = status, ["www-authenticate"] = 'Bearer realm="shipway"' .. challenge}, words)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local key, authorization = headers:get("x-api-key"), headers:get("authorization")
  headers:remove("x-api-key")
  headers:remove("authorization")
  -- By this mark the edge's own answers are written as gRPC wants them.
  headers:remove("x-shipway-protocol")
  if (headers:get("content-type") or ""):find("^application/grpc") then
    headers:replace("x-shipway-protocol", "oip_grpc")
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  if FORWARDS then
    -- From here a route to another node takes them, and nobody else.
    if key ~= nil then metadata:set("shipway.auth", "x-api-key", key) end
    if authorization ~= nil then metadata:set("shipway.auth", "authorization", authorization) end
  end
  local path = headers:get(":path"):match("^[^?#]*")
  if not OPEN[path] then
    local name, scopes, words = caller(metadata, key, authorization)
    if name == nil and words == nil then return refuse(handle, "401", "", "credentials are needed; send " .. USE) end
    if name == nil then return refuse(handle, "401", ', error="invalid_token"', words .. "; send " .. USE) end
    metadata:set("shipway.auth", "client", name)
    local needed = scope_of(path)
    if not scopes[needed] then
      local has = {}
      for scope in pairs(scopes) do has[#has + 1] = scope:sub(1, LONGEST_NAME_BYTES) end
      table.sort(has)
      local challenge = ', error="insufficient_scope", scope="' .. needed .. '"'
      local found = #has > 0 and table.concat(has, " "):sub(1, LONGEST_NAME_BYTES) or "none"
      return refuse(handle, "403", challenge, "the scope " .. needed .. " is needed; these credentials have: " .. found)
    end
  end
  metadata:set("shipway.auth", "passed", true)
end

-- Which version a route chose is nothing for those who have not said who they are.
function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get(":status") ~= "401" then return end
  for _, name in ipairs({"model", "version", "digest", "prediction-id"}) do headers:remove("x-shipway-" .. name) end
end
