<?php
// What PHP programs commonly store, by PHP's own sodium and openssl extensions.
//   php php.php make | python broken.py > ../php.json
//   php php.php open < [{"layout", "key", "value", "aad"}, …] > ["plaintext in hex", …]
function sealed(string $name, string $key, string $text, string $aad): string
{
    if ($name === 'libsodium-token') {
        $nonce = random_bytes(24);
        return 'v1:' . base64_encode($nonce . sodium_crypto_secretbox($text, $nonce, $key));
    }
    if (str_starts_with($name, 'php-aes-gcm')) {
        $iv = random_bytes(12);
        $sealed = openssl_encrypt($text, 'aes-256-gcm', $key, OPENSSL_RAW_DATA, $iv, $tag, $aad);
        return 'v1:' . base64_encode($iv . $tag . $sealed);
    }
    if (str_starts_with($name, 'xchacha')) {
        $nonce = random_bytes(24);
        return bin2hex($nonce . sodium_crypto_aead_xchacha20poly1305_ietf_encrypt($text, $aad, $nonce, $key));
    }
    $iv = random_bytes(16);
    return base64_encode($iv . openssl_encrypt($text, $name, $key, OPENSSL_RAW_DATA, $iv));
}

function opened(string $name, string $key, string $value, string $aad): string
{
    $hex = str_starts_with($name, 'xchacha');
    $raw = $hex ? hex2bin($value) : base64_decode(preg_replace('/^v[12]:/', '', $value), true);
    if ($name === 'libsodium-token') {
        return sodium_crypto_secretbox_open(substr($raw, 24), substr($raw, 0, 24), $key);
    }
    if (str_starts_with($name, 'php-aes-gcm')) {
        [$iv, $tag] = [substr($raw, 0, 12), substr($raw, 12, 16)];
        return openssl_decrypt(substr($raw, 28), 'aes-256-gcm', $key, OPENSSL_RAW_DATA, $iv, $tag, $aad);
    }
    if ($hex) {
        $nonce = substr($raw, 0, 24);
        return sodium_crypto_aead_xchacha20poly1305_ietf_decrypt(substr($raw, 24), $aad, $nonce, $key);
    }
    return openssl_decrypt(substr($raw, 16), $name, $key, OPENSSL_RAW_DATA, substr($raw, 0, 16));
}

$layouts = [
    'libsodium-token' => ['like' => 'libsodium-token'],
    'php-aes-gcm' => ['like' => 'php-aes-gcm'],
    'php-aes-gcm, bound' => ['like' => 'php-aes-gcm', 'aad' => 'tenant:{tenant_id}'],
    'xchacha' => ['encoding' => 'hex', 'cipher' => 'xchacha20-poly1305'],
    'xchacha, bound' => ['encoding' => 'hex', 'cipher' => 'xchacha20-poly1305', 'aad' => 'tenant:{tenant_id}'],
    'aes-256-cbc' => ['encoding' => 'base64', 'cipher' => 'aes-256-cbc', 'plaintext' => 'utf8'],
    'aes-128-cbc' => ['encoding' => 'base64', 'cipher' => 'aes-128-cbc', 'plaintext' => 'pattern:.*[a-z].*'],
    'aes-256-ctr' => ['encoding' => 'base64', 'cipher' => 'aes-256-ctr', 'plaintext' => 'json'],
];

if ($argv[1] === 'open') {
    $found = [];
    foreach (json_decode(stream_get_contents(STDIN), true) as $one) {
        $name = array_search($one['layout'], $layouts);
        $found[] = bin2hex(opened($name, hex2bin($one['key']), $one['value'], $one['aad']));
    }
    echo json_encode($found);
    exit;
}

$sets = [];
foreach ($layouts as $name => $layout) {
    $bytes = str_contains($name, '128') ? 16 : 32;
    $key = random_bytes($bytes);
    $aad = isset($layout['aad']) ? 'tenant:7' : '';
    $vectors = [];
    $texts = ['"a"', '{"iban":"CH93 0076 2011 6238 5295 7","✓":1}', json_encode(str_repeat('x', 300))];
    // neither JSON nor the pattern may be empty
    if (!in_array($layout['plaintext'] ?? '', ['json', 'pattern:.*[a-z].*'])) {
        $texts[] = '';
    }
    foreach ($texts as $text) {
        $value = sealed($name, $key, $text, $aad);
        $vectors[] = ['expect' => 'ok', 'plain' => bin2hex($text), 'value' => $value];
    }
    $text = '{"another":"value"}';
    $value = sealed($name, random_bytes($bytes), $text, $aad);
    $vectors[] = ['expect' => 'unknown-key', 'why' => 'sealed under another key', 'value' => $value];
    if (!preg_match('/libsodium|cbc|ctr/', $name)) {
        $value = sealed($name, $key, $text, 'tenant:8');
        $vectors[] = ['expect' => 'bad-aad', 'why' => 'sealed for another tenant', 'value' => $value];
    }
    $set = ['layout' => $layout, 'key' => bin2hex($key)];
    if ($aad) {
        $set['columns'] = ['tenant_id' => '7'];
    }
    $sets[] = $set + ['vectors' => $vectors];
}
$maker = 'php ' . PHP_VERSION . ' with sodium ' . SODIUM_LIBRARY_VERSION . ' and ' . OPENSSL_VERSION_TEXT;
echo json_encode(['maker' => $maker, 'sets' => $sets], JSON_UNESCAPED_SLASHES), "\n";
