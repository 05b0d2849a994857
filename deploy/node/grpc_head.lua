-- Stands before the scripts that route a ModelInferRequest by what is at its head.

local function varint(text, at)
  local value, scale = 0, 1
  while true do
    local byte = text:byte(at)
    if byte == nil then return nil, at end
    at = at + 1
    value = value + (byte % 128) * scale
    if byte < 128 then return value, at end
    scale = scale * 128
    if scale > 2 ^ 35 then return nil, at end
  end
end

-- Sets the headers that the routes look at, from model_name and model_version. `at` is where the message begins.
local function route_by_head(handle, body, at)
  local headers = handle:headers()
  local text = body:getBytes(0, math.min(body:length(), 1024))
  while at <= #text do
    local tag = text:byte(at)
    if tag ~= 10 and tag ~= 18 then break end -- neither model_name nor model_version: the rest is not for routing
    local length
    length, at = varint(text, at + 1)
    if length == nil or at + length - 1 > #text then break end
    if length > 0 then
      local value = text:sub(at, at + length - 1)
      -- A name that cannot be one of ours must match no route, rather than fall to the default version.
      if not value:find("^[%w_-]+$") then value = "?" end
      headers:replace(tag == 10 and "x-shipway-model" or "x-shipway-version", value)
    end
    at = at + length
  end
  handle:clearRouteCache()
end

