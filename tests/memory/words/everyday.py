"""A table of what people tell an assistant in passing, how they ask for it later, and what they say besides."""

EVERYDAY = (
    (
        "My flight to Lisbon got cancelled and I'm still waiting for the refund.",
        "Has my refund for the cancelled flight come through?",
    ),
    ("I'm allergic to penicillin, please write that down.", "Do I have any allergies?"),
    ("The landlord wants two months' deposit for the flat.", "How much deposit did the landlord ask for?"),
    ("Our boiler keeps making a whistling noise since Monday.", "What was wrong with the boiler?"),
    (
        "Meine Krankenversicherung hat den Antrag auf Kostenerstattung abgelehnt.",
        "Was hat die Versicherung zu meinem Antrag gesagt?",
    ),
    ("Der Kühlschrank kommt am Donnerstag zwischen acht und zwölf.", "Wann wird mein Kühlschrank geliefert?"),
    ("Ich brauche einen neuen Heizungsmonteur, der alte kommt nicht mehr.", "Wie war das mit der Heizung?"),
    (
        "Unsere Tochter fängt im September in der Grundschule Mühlenweg an.",
        "In welche Schule geht unsere Tochter?",
    ),
    ("J'ai perdu ma carte bancaire dans le métro hier soir.", "Où est-ce que j'ai perdu ma carte ?"),
    ("Le plombier doit passer vendredi pour réparer la fuite.", "Quand vient le plombier ?"),
    ("Mon fils préfère les crêpes sans sucre.", "Comment mon fils aime-t-il ses crêpes ?"),
    ("Mi hermana se casa en junio en Sevilla.", "¿Dónde se casaba mi hermana?"),
    ("La factura de la luz me llegó por duplicado este mes.", "¿Qué pasó con las facturas de la luz?"),
    (
        "Necesito cambiar la contraseña del wifi porque los vecinos la saben.",
        "¿Por qué quería cambiar la contraseña?",
    ),
    ("Kızımın doğum günü ağustosun on ikisinde.", "Kızımın doğum günü ne zamandı?"),
    ("Buzdolabımız bozuldu, servis yarın gelecek.", "Buzdolabı için servis ne zaman geliyor?"),
    ("Araba sigortamı Ankara'daki şubeden yaptırdım.", "Sigortayı hangi şubede yaptırmıştım?"),
    ("Я потерял ключи от дачи где-то на вокзале.", "Где я потерял ключ от дачи?"),
    ("Бабушке прописали таблетки от давления два раза в день.", "Сколько раз в день бабушка пьёт таблетки?"),
    ("Наш рейс в Казань перенесли на среду.", "На какой день перенесён рейс в Казань?"),
    ("انكسرت شاشة هاتفي وأريد تصليحها هذا الأسبوع.", "ماذا حدث لشاشة الهاتف؟"),
    ("موعد طبيب الأسنان يوم الثلاثاء الساعة الرابعة.", "متى موعدي عند طبيب الأسنان؟"),
    ("والدتي تعيش في الإسكندرية منذ ثلاثين سنة.", "أين تعيش والدتي؟"),
    ("ماشینم را دیروز به تعمیرگاه بردم، ترمزش خراب بود.", "ماشین من چه مشکلی داشت؟"),
    ("خانه‌ی جدیدمان نزدیک پارک ملت است.", "خانهٔ جدید ما کجاست؟"),
    ("मेरी ट्रेन की टिकट कन्फर्म नहीं हुई, मुझे वेटिंग मिली है।", "मेरे टिकट का क्या हुआ?"),
    ("मेरे बेटे को मूंगफली से एलर्जी है।", "बेटे को किस चीज़ से एलर्जी थी?"),
    ("बैंक ने मेरा लोन मंज़ूर कर दिया है।", "क्या मेरा लोन मंजूर हुआ?"),
    ("我妈妈下个月要做膝盖手术。", "妈妈的手术是什么时候？"),
    ("洗衣机漏水了，师傅说周六来修。", "洗衣机什么时候有人来修？"),
    ("我想把会员从月付改成年付。", "我的会员是怎么付费的？"),
    ("来週の火曜日に歯医者の予約を入れました。", "歯医者の予約はいつだっけ？"),
    ("うちの猫は魚アレルギーなので鶏肉しか食べません。", "猫は何を食べますか？"),
    ("주문한 신발이 너무 작아서 교환하고 싶어요.", "제 신발 교환은 어떻게 됐나요?"),
    ("어머니께서 다음 달에 제주도로 이사하세요.", "어머니는 어디로 이사하신다고 했죠?"),
    ("ฉันแพ้อาหารทะเล โดยเฉพาะกุ้ง", "ฉันแพ้อาหารอะไรบ้าง"),
    ("แอร์ที่ห้องนอนไม่เย็นมาสองวันแล้ว", "แอร์ห้องนอนเป็นอะไร"),
    ("Polkupyöräni varastettiin rautatieaseman edestä.", "Mistä polkupyörä varastettiin?"),
    ("Vakuutusyhtiö korvaa vesivahingon keittiössä.", "Korvaako vakuutus vesivahinkoni?"),
    ("Zgubiłam dowód osobisty podczas urlopu w Zakopanem.", "Gdzie zgubiłam dowód?"),
    (
        "My order arrived with the wrong size, I need to send the trousers back.",
        "Do you happen to remember which item I had to send back?",
    ),
    ("I take my insulin at half past seven every morning.", "Could you remind me when I take my insulin?"),
    ("We decided to name the puppy Biscuit.", "What did we end up naming the puppy?"),
    ("My manager Priya wants the quarterly report by Wednesday.", "By when does Priya expect the report?"),
    ("The password reset email never reaches my inbox.", "What problem was I having with the password reset?"),
    (
        "Ich habe den Mietvertrag für die Werkstatt zum Jahresende gekündigt.",
        "Ich wollte fragen, was aus dem Vertrag für die Werkstatt geworden ist.",
    ),
    ("Mein Autoschlüssel liegt bei meiner Schwester.", "Könntest du mir sagen, wo der Schlüssel vom Auto ist?"),
    ("Die Waschmaschine schleudert nicht mehr richtig.", "Was hatte ich über meine Waschmaschine erzählt?"),
    ("Unser Schornsteinfeger kommt am siebten März.", "Weißt du noch, wann der Schornsteinfeger kommen wollte?"),
    ("Je suis intolérante au lactose depuis mon enfance.", "Tu te souviens à quoi je suis intolérante ?"),
    ("Ma grand-mère habite à Besançon avec mon oncle.", "Pourrais-tu me rappeler où habite ma grand-mère ?"),
    ("J'ai oublié mon parapluie dans le bus numéro douze.", "Dans quel bus j'avais laissé mon parapluie ?"),
    ("Mi abuelo fue marinero en Cádiz.", "¿A qué se dedicaba mi abuelo?"),
    ("El técnico viene el jueves a revisar la caldera.", "¿Te acuerdas de cuándo venía el técnico de la caldera?"),
    ("Perdí las gafas en la playa.", "¿Dónde se me perdieron las gafas?"),
    ("Ho prenotato l'albergo a Bologna per tre notti.", "Per quante notti avevo prenotato l'albergo?"),
    ("Mio nonno coltiva i pomodori in giardino.", "Che cosa coltiva il nonno?"),
    ("Perdi o meu guarda-chuva no comboio para Braga.", "Onde é que perdi o guarda-chuva?"),
    ("Ik heb mijn fietssleutel bij de bakker laten liggen.", "Waar had ik mijn sleutel laten liggen?"),
    ("Min mormor fyller nittio år på lördag.", "När fyller mormor år?"),
    ("Halamın evi Trabzon'da deniz kenarında.", "Halamın evi neredeydi?"),
    ("Gözlüğümü kütüphanede unuttum.", "Gözlüğümü nerede unutmuştum?"),
    ("Doktor bana tuzsuz yememi söyledi.", "Doktorum ne yememi söylemişti?"),
    ("Мой паспорт заканчивается в апреле, нужно менять.", "Когда заканчивается мой паспорт?"),
    ("Сестра учится на ветеринара в Саратове.", "На кого учится моя сестра?"),
    ("Кондиционер в спальне течёт.", "Что было не так с кондиционером?"),
    ("أخي يدرس الهندسة في جامعة القاهرة.", "ماذا يدرس أخي؟"),
    ("طلبت استرجاع الحذاء لأن مقاسه صغير.", "لماذا طلبت إرجاع الحذاء؟"),
    ("پدرم به گردو حساسیت دارد.", "پدر به چه چیزی حساسیت داشت؟"),
    ("کارت بانکی‌ام را در تاکسی جا گذاشتم.", "کارتم را کجا جا گذاشته بودم؟"),
    ("मेरी बहन की शादी नवंबर में जयपुर में है।", "बहन की शादी कहाँ है?"),
    ("डॉक्टर ने मुझे नमक कम खाने को कहा।", "डॉक्टर ने क्या खाने को मना किया था?"),
    ("我的护照六月到期，需要去大使馆换。", "我的护照什么时候过期？"),
    ("我儿子对花生过敏。", "我儿子对什么东西过敏？"),
    ("弟は大阪の自動車工場で働いています。", "弟はどこで働いていますか？"),
    ("パスポートの更新を申し込んだばかりです。", "パスポートはどうなっていましたか？"),
    ("세탁기가 물이 새서 수리 기사를 불렀어요.", "세탁기에 무슨 문제가 있었죠?"),
    ("제 동생은 부산에서 간호사로 일합니다.", "동생이 부산에서 무슨 일을 한다고 했지?"),
    ("แม่จะผ่าตัดเข่าเดือนหน้า", "แม่จะผ่าตัดอะไร"),
    ("Lentokoneemme myöhästyi kolme tuntia Oulussa.", "Kuinka paljon lentokone myöhästyi?"),
    ("Mình bị mất ví ở chợ Bến Thành hôm qua.", "Mình mất ví ở đâu nhỉ?"),
    ("Paspor saya hilang di bandara Surabaya.", "Di mana paspor saya hilang?"),
    ("הבת שלי לומדת רפואה בחיפה.", "איפה לומדת הבת שלי?"),
    ("Η αδερφή μου μένει στη Θεσσαλονίκη.", "Πού μένει η αδερφή μου;"),
)
NEVER_SAID = (
    "What's the name of my dentist in Boston?",
    "Which hotel did I book for the conference?",
    "Wie heißt mein Steuerberater?",
    "Welche Schuhgröße habe ich?",
    "Quel est le numéro de mon passeport ?",
    "Köpeğimin adı neydi?",
    "Какой у меня размер обуви?",
    "ما هو رقم جواز سفري؟",
    "我的狗叫什么名字？",
    "私の好きな映画は何でしたか？",
    "Mikä oli koirani nimi?",
    "What was wrong with my bicycle?",
    "Do you remember what I was going to cook?",
    "Could you remind me who my accountant is?",
    "Was war mit meinem Zahnarzttermin?",
    "Quel était le nom de mon coiffeur ?",
    "Когда у меня приём у стоматолога?",
    "متى يبدأ الفيلم؟",
    "我最喜欢的电影是什么？",
    "제 주치의 이름이 뭐였죠?",
    "मेरी पसंदीदा फिल्म कौन सी है?",
)

# One a line.
BESIDES = """
Can you turn the volume down a little
I slept badly last night
The weather is lovely today
My back hurts after gardening
We watched a documentary about whales
I'd like to learn the guitar this winter
Please remind me to buy oat milk
The kids are at their grandparents
I finished the book you suggested
There's a strange smell in the cellar
My colleague got promoted again
I think I left the oven on
The parcel arrived with a dent in it
Could you convert that into pounds
I'm on the train so it may cut out
The museum was closed for renovation
We painted the hallway yellow
I've been vegetarian for six years
My phone battery drains too fast
That invoice has the wrong address
I prefer the window seat
The printer says it's out of toner
We're having friends over for dinner
I signed up for a pottery class
Ich habe heute schlecht geschlafen
Der Bus hatte wieder Verspätung
Wir haben am Wochenende gegrillt
Mein Drucker druckt nur noch schwarz
Die Nachbarn sind im Urlaub
Ich suche ein Geschenk für meinen Bruder
Der Arzt hat mir Ruhe verordnet
Mir ist die Milch übergekocht
Das Paket liegt noch bei der Post
Im Garten blühen schon die Rosen
Ich möchte das Abo kündigen
Der Akku vom Fahrrad ist leer
Wir fahren im Sommer an die Ostsee
Mein Chef hat mir frei gegeben
Die Rechnung ist doppelt abgebucht worden
Ich trinke meinen Kaffee ohne Zucker
Il fait très chaud aujourd'hui
Je voudrais un café sans sucre
Ma voiture est au garage
Nous partons en vacances dimanche
Le chat a encore cassé un vase
J'ai fini mon rapport ce matin
Le voisin fait du bruit la nuit
Je cherche une recette de quiche
Mon ordinateur est devenu lent
La livraison est en retard
Les enfants ont cours demain
Je dois appeler ma banque
On a mangé au restaurant hier
Le train de huit heures est supprimé
Hoy hace mucho viento
Tengo que llamar al médico
El perro del vecino ladra mucho
Mañana tengo una reunión temprano
Me gusta el café con leche
La lavadora no centrifuga bien
Estoy buscando piso en el centro
Mi jefe está de vacaciones
Compré unas zapatillas nuevas
El paquete todavía no ha llegado
Los niños están en el colegio
Quiero aprender a cocinar paella
Se me olvidó pagar el agua
El tren salió con retraso
Bugün hava çok sıcak
Kahvemi şekersiz içiyorum
Toplantı saat üçe alındı
Kargom hâlâ gelmedi
Telefonumun şarjı çabuk bitiyor
Hafta sonu denize gittik
Annem yarın bize geliyor
Yeni bir masa almak istiyorum
Otobüsü kaçırdım
İnternet faturası yüksek geldi
Kitabı dün bitirdim
Komşular çok gürültü yapıyor
Сегодня очень холодно
Я пью чай без сахара
Посылка ещё не пришла
Мы ездили на озеро в выходные
Телефон быстро разряжается
Соседи опять шумят
Мне нужно купить хлеб
Завтра у меня собеседование
Кот разбил вазу
Дети в школе до двух
Я забыл заплатить за интернет
Хочу научиться играть на гитаре
Начальник ушёл в отпуск
Мы покрасили кухню в зелёный
الطقس جميل اليوم
أشرب القهوة بدون سكر
لم يصل الطرد بعد
عندي اجتماع غدا صباحا
الجيران يصدرون ضجيجا
أريد أن أتعلم السباحة
نسيت دفع فاتورة الكهرباء
سافرنا إلى البحر في العطلة
اشتريت كتابا جديدا
السيارة تحتاج إلى زيت
الأولاد في المدرسة
الإنترنت بطيء عندي
امروز هوا خیلی سرد است
چای را بدون قند می‌خورم
بسته هنوز نرسیده است
فردا جلسه دارم
همسایه‌ها سر و صدا می‌کنند
می‌خواهم پیانو یاد بگیرم
بچه‌ها مدرسه هستند
کتاب تازه‌ای خریدم
आज बहुत गर्मी है
मैं चाय बिना चीनी के पीता हूँ
पार्सल अभी तक नहीं आया
कल सुबह मेरी मीटिंग है
पड़ोसी बहुत शोर करते हैं
मुझे दूध खरीदना है
फोन की बैटरी जल्दी खत्म होती है
हम छुट्टी में पहाड़ गए थे
बिजली का बिल ज़्यादा आया
बच्चे स्कूल में हैं
今天天气很好
我喝咖啡不加糖
快递还没有到
明天早上我有个会议
邻居晚上很吵
我想学弹钢琴
手机电池用得很快
周末我们去了海边
孩子们在学校
我忘记交电费了
帮我把音量调小一点
公司下周放假
今日はとても暑いです
コーヒーは砂糖なしで飲みます
荷物がまだ届きません
明日の朝は会議があります
隣の人が夜うるさいです
ギターを習いたいです
電池がすぐなくなります
週末は海に行きました
子供は学校にいます
牛乳を買わないといけません
電気代を払い忘れました
新しい机を買いました
오늘 날씨가 정말 덥네요
커피는 설탕 없이 마셔요
택배가 아직 안 왔어요
내일 아침에 회의가 있어요
옆집이 밤에 시끄러워요
기타를 배우고 싶어요
배터리가 너무 빨리 닳아요
주말에 바다에 갔어요
아이들은 학교에 있어요
전기 요금 내는 걸 깜빡했어요
วันนี้อากาศร้อนมาก
ฉันดื่มกาแฟไม่ใส่น้ำตาล
พัสดุยังไม่มาส่ง
พรุ่งนี้เช้ามีประชุม
ข้างบ้านเสียงดังตอนกลางคืน
อยากเรียนกีตาร์
แบตเตอรี่หมดเร็วมาก
ลูกอยู่ที่โรงเรียน
Tänään on tosi kylmä
Juon kahvin ilman sokeria
Paketti ei ole vielä tullut
Huomenna aamulla on kokous
Naapurit metelöivät öisin
Haluaisin oppia soittamaan pianoa
Puhelimen akku tyhjenee nopeasti
Viikonloppuna olimme mökillä
Lapset ovat koulussa
Unohdin maksaa sähkölaskun
Dzisiaj jest bardzo zimno
Piję kawę bez cukru
Paczka jeszcze nie przyszła
Jutro rano mam spotkanie
Sąsiedzi hałasują w nocy
Chcę nauczyć się gry na gitarze
Dzieci są w szkole
Zapomniałam zapłacić za prąd
"""
